import pytest

from dali import systems
from dali.errors import UsageError
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems._prompt import Prompt
from dali.systems.collaborative import Cache, shapes
from policies.assignment_cases import BY_HAND
from systems.player import step


def cache(order="counter", layers=1, **options):
    return Cache(layers, 6, 2, 0, Prompt(), order, **options)


def test_the_counter_adds_one_on_a_hit_and_fills_above_the_highest():
    counter = cache()
    # 0 was hit: 1. 2 replaces 1, which has 0, at 1 + 1.
    assert counter.observe(0, [1, 0, 1, 0, 0, 0], {0, 1}) == [Swap(1, 2)]
    # 3 replaces 0 (1) at 2 + 1; then 4 replaces 2 (2) at 3 + 1.
    assert counter.observe(0, [0, 0, 0, 1, 1, 0], {0, 2}) == [Swap(0, 3), Swap(2, 4)]
    # 4 is hit; 0 replaces 3.
    assert counter.observe(0, [1, 0, 0, 0, 1, 0], {3, 4}) == [Swap(3, 0)]
    # 0 has 6, 4 has 5: three hits of 4 put it above.
    for _ in range(3):
        assert counter.observe(0, [0, 0, 0, 0, 1, 0], {0, 4}) == []
    assert counter.observe(0, [0, 1, 0, 0, 0, 0], {0, 4}) == [Swap(0, 1)]


def test_true_lru_and_fifo_differ_in_what_a_hit_is_worth():
    for order, evicted in (("lru", 3), ("fifo", 0)):
        ways = cache(order)
        assert ways.observe(0, [1, 0, 0, 1, 0, 0], {0, 1}) == [Swap(1, 3)]
        assert ways.observe(0, [1, 0, 0, 0, 0, 0], {0, 3}) == []
        assert ways.observe(0, [0, 0, 0, 0, 1, 0], {0, 3}) == [Swap(evicted, 4)]


def test_what_the_step_used_is_no_victim():
    assert cache().observe(0, [1, 1, 1, 1, 0, 0], {0, 1}) == []


def test_a_token_may_start_so_many_copies():
    counter = cache(layers=2, quota=3)
    assert counter.observe(0, [0, 0, 1, 1, 0, 0], {0, 1}) == [Swap(0, 2), Swap(1, 3)]
    assert counter.observe(1, [0, 0, 1, 1, 0, 0], {0, 1}) == [Swap(0, 2)]
    assert counter.observe(0, [0, 0, 0, 0, 1, 1], {2, 3}) == [Swap(2, 4), Swap(3, 5)]


def test_later_layers_go_without_where_there_are_fewer_sets():
    one = Cache(2, 6, 2, 0, Prompt(), sets=1)
    assert len(one.initial(0)) == 4
    assert one.initial(1) == ()
    assert one.observe(1, [1, 0, 0, 0, 0, 0], set()) == []


@pytest.mark.parametrize("sets", [0, 3])
def test_no_more_sets_than_layers(sets):
    with pytest.raises(UsageError, match=f"2 layers has no {sets} index sets"):
        Cache(2, 6, 2, 0, Prompt(), sets=sets)


def test_the_sweep_over_sets_and_ways():
    assert shapes(layers=2, experts=6, slots=4) == [(1, 4), (2, 2)]
    assert shapes(layers=3, experts=2, slots=4) == [(1, 2), (2, 2), (3, 1)]
    assert shapes(layers=3, experts=2, slots=1) == [(1, 1)]


def test_no_copy_starts_behind_another():
    policies = systems.get("collaborative").create(1, 4, 1, 2)
    policies.assign.assign(0, [0, 0, 1, 0], ResidencyView({0, 1}, slots=2, link_free=0.1), BY_HAND)
    assert policies.cache.observe(0, [0, 0, 1, 0], {0, 1}) == []
    policies.assign.assign(0, [0, 0, 1, 0], ResidencyView({0, 1}, slots=2), BY_HAND)
    assert policies.cache.observe(0, [0, 0, 1, 0], {0, 1}) == [Swap(0, 2)]


def test_prompts_stay_on_the_cpu_and_leave_the_cache_alone():
    policies = systems.get("collaborative").create(1, 4, 1, 2)
    view = ResidencyView({0, 1}, slots=2)
    policies.begin(step(7, prefill=True))
    assert policies.assign.assign(0, [1, 0, 1, 0], view, BY_HAND) == LayerPlan((0, 2), (), ())
    assert policies.cache.observe(0, [1, 0, 1, 0], {0, 1}) == []
    policies.begin(step(7))
    assert policies.assign.assign(0, [1, 0, 1, 0], view, BY_HAND) == LayerPlan((2,), (0,), ())
    assert policies.cache.observe(0, [1, 0, 1, 0], {0, 1}) == [Swap(1, 2)]
