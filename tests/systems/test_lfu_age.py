from dali.policies.cache import Swap
from dali.systems.lfu_age import Cache


def test_a_count_fades_with_the_steps_since_its_last_use():
    cache = Cache(1, 4, 2)
    for _ in range(3):
        cache.observe(0, [1, 0, 0, 0], {0, 1})
    for _ in range(17):
        cache.observe(0, [0, 0, 1, 0], {0, 1})
    for _ in range(2):
        cache.observe(0, [0, 1, 0, 0], {0, 1})
    # Step 23: 0 has 3 x .98^20 = 2.003, 1 has 2 x .98 = 1.96.
    assert cache.observe(0, [0, 0, 0, 1], {0, 1}, {3}) == [Swap(1, 3)]


def test_an_older_favourite_gives_way():
    cache = Cache(1, 4, 2)
    for _ in range(3):
        cache.observe(0, [1, 0, 0, 0], {0, 1})
    for _ in range(19):
        cache.observe(0, [0, 0, 1, 0], {0, 1})
    for _ in range(2):
        cache.observe(0, [0, 1, 0, 0], {0, 1})
    # Step 25: 0 has 3 x .98^22 = 1.92, 1 has 1.96.
    assert cache.observe(0, [0, 0, 0, 1], {0, 1}, {3}) == [Swap(0, 3)]
