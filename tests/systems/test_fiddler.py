from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems._popular import PopularCache
from dali.systems.fiddler import Assign
from policies.assignment_cases import BY_HAND


def test_a_miss_is_copied_where_its_tokens_cost_the_cpu_more():
    # 4 a token on the CPU against 5 a copy.
    workload = [1, 1, 2, 3]
    assert Assign().assign(0, workload, ResidencyView({0}, slots=2), BY_HAND) == LayerPlan(
        (1,), (0, 2, 3), (2, 3)
    )
    assert Assign().assign(0, workload, ResidencyView({0}), BY_HAND) == LayerPlan((1, 2, 3), (0,), ())
    landed = ResidencyView({0}, {1: 0.0}, slots=2)
    assert Assign().assign(0, workload, landed, BY_HAND) == LayerPlan((), (0, 1, 2, 3), (2, 3))


def test_the_popular_set_is_chosen_once_for_each_layer():
    cache = PopularCache(2, 4, 2, profiled=6)
    assert cache.observe(0, [1, 2, 0, 2], {0, 2}) == []
    # Counts 1, 3, 0, 2: 1 for 2 and 3 for 0.
    assert cache.observe(0, [0, 1, 0, 0], {0, 2}) == [Swap(2, 1), Swap(0, 3)]
    assert cache.observe(0, [9, 0, 9, 0], {1, 3}) == []
    # Layer 1 counts for itself; 1 has no more than 0.
    assert cache.observe(1, [3, 3, 0, 0], {0, 2}) == [Swap(2, 1)]


def test_what_is_in_use_stays():
    cache = PopularCache(1, 4, 2, profiled=1)
    assert cache.observe(0, [0, 5, 0, 6], {0, 2}, (), {2, 3}) == [Swap(0, 1)]
