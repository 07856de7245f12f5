import pytest

from dali import systems
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast
from dali.systems.hobbit import Cache, Prefetch, precisions
from policies.assignment_cases import BY_HAND
from systems.player import step


class Placed(Cache):
    def initial(self, layer):
        return (0, 1)


def test_the_least_of_recency_frequency_precision_and_nearness_goes():
    cache = Placed(2, 3, 2)
    cache.begin(step(1))
    # (0, 1): nothing but .25 x (1 - 1/2); layer 1 comes next: .25 x 1.
    assert cache.observe(0, [1, 0, 1], {0, 1}, {2}) == [Swap(1, 2)]
    # Layer 0 is next now: (0, 0) and (0, 2) have .25 + .5 + .25. All of layer 1's residents are in use.
    assert cache.observe(1, [1, 1, 1], {0, 1}, {2}) == [Swap(0, 2, donor=0)]
    # Step 2, layer 0 holds 2 alone. (0, 2) was used in step 1: .25/2 + .5/2 + .125 = .5; (1, 0) the same with .25: .625.
    assert cache.observe(0, [1, 0, 0], {2}, {0}) == [Swap(2, 0)]


def test_statistics_start_anew_with_new_requests():
    def evicted(second):
        cache = Placed(1, 3, 2)
        cache.begin(step(1))
        for _ in range(2):
            cache.observe(0, [0, 1, 0], {0, 1})
        cache.begin(step(*second))
        cache.observe(0, [1, 0, 0], {0, 1})
        return cache.observe(0, [0, 0, 1], {0, 1}, {2})

    # Of 4 steps: 0 used once, last in step 3; 1 used twice, last in step 2: .25 (3 + 2 x 1) < .25 (2 + 2 x 2).
    assert evicted((1, 2)) == [Swap(0, 2)]
    assert evicted((2,)) == [Swap(1, 2)]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ([0.5, 0.3, 0.15, 0.05], ["high", "high", "low", "skip"]),  # above: 0, .5, .8, .95
        ([0.05, 0.5, 0.3, 0.15], ["skip", "high", "high", "low"]),
        ([6.0, 4.0], ["high", "high"]),  # exactly .6 of the sum
        ([0.7, 0.3], ["high", "low"]),
        ([1.0], ["high"]),
    ],
)
def test_precision_by_the_weight_ranked_above(weights, chosen):
    assert precisions(weights) == chosen


def test_it_fetches_for_the_first_layer_with_a_miss():
    full = ResidencyView({0, 1}, {2: 0.0}, slots=3)
    ahead = [
        Forecast(1, [1, 2, 1, 0], full, 0.0),
        Forecast(2, [1, 2, 1, 3], full, 0.0),
        Forecast(3, [0, 0, 0, 3], ResidencyView(set(), slots=3), 0.0),
    ]
    assert Prefetch().plan(ahead, BY_HAND) == [(2, 3)]
    assert Prefetch().plan(ahead[:1], BY_HAND) == []
    few = Forecast(1, [1, 2, 1, 3], ResidencyView(set(), slots=2), 0.0)
    assert Prefetch().plan([few], BY_HAND) == [(1, 3), (1, 1)]


def test_misses_are_loaded_or_left_to_the_cpu():
    view = ResidencyView({0}, slots=2)
    assigned = [
        systems.get(name).create(1, 2, 1, 1).assign.assign(0, [1, 1], view, BY_HAND)
        for name in ("hobbit", "hobbit:cpu")
    ]
    assert assigned == [LayerPlan((), (0, 1), (1,)), LayerPlan((1,), (0,), ())]
