import numpy as np
import pytest

from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast
from dali.policies.signals import Signals
from dali.systems.hybrimoe import Cache, Prefetch, schedule
from policies.assignment_cases import BY_HAND

# Costs by hand: the CPU takes 4, 6, 8, 10 for 1 to 4 tokens, the accelerator 1, 2, 3, 4, a copy 5.


def test_each_lane_takes_what_it_would_finish_first():
    # Accelerator 0 (to 2), 1 (to 3); 2 would land at 5 and end at 9, the CPU's 3 ends at 8 and goes first; then 2 against 8 + 10.
    view = ResidencyView({0, 1}, slots=2)
    assert schedule([2, 1, 4, 3, 0], view, BY_HAND) == (LayerPlan((3,), (0, 1, 2), (2,)), 9)


def test_the_copy_lane_moves_the_heaviest_miss_first():
    # Against 1, behind its copy done at 9: the CPU's 0 at 4 goes first, its 2 at 10 does not; 2 behind 1's copy: 12 against 10.
    view = ResidencyView(set(), slots=2)
    assert schedule([1, 4, 2], view, BY_HAND) == (LayerPlan((0, 2), (1,), (1,)), 10)


def test_without_a_slot_misses_stay_on_the_cpu():
    assert schedule([2, 1, 4, 3], ResidencyView({0, 1}), BY_HAND) == (LayerPlan((3, 2), (0, 1), ()), 18)


def test_a_copy_under_way_is_waited_for_and_delays_the_next():
    # 2 lands at 1, runs 3 to 7; 3 would land at 6 and end at 10, the CPU has it at 8.
    view = ResidencyView({0, 1}, {2: 1.0}, slots=2)
    assert schedule([2, 1, 4, 3], view, BY_HAND) == (LayerPlan((3,), (0, 1, 2), ()), 8)


def test_an_idle_cpu_takes_residents_from_the_back():
    assert schedule([3, 3, 3], ResidencyView({0, 1, 2}), BY_HAND) == (LayerPlan((2,), (0, 1), ()), 8)


def signals(ids, scores=None, weights=None):
    return Signals(
        np.array(ids),
        None if weights is None else np.array(weights),
        None if scores is None else np.array(scores),
    )


def test_the_cache_evicts_the_least_averaged_score():
    cache = Cache(1, 4, 1, 2)
    # S = .25, .15, 0, 0: only the highest 2 scores count.
    first = signals([[0]], [[0.5, 0.3, 0.1, 0.1]])
    assert cache.observe(0, [1, 0, 0, 0], {1, 3}, {0}, frozenset(), first) == [Swap(3, 0)]
    # Means 0, .25, 0, .55: S = .125, .2, 0, .275.
    second = signals([[3], [3]], [[0.0, 0.2, 0.1, 0.7], [0.1, 0.3, 0.2, 0.4]])
    assert cache.observe(0, [0, 0, 0, 2], {0, 1}, {3}, frozenset(), second) == [Swap(0, 3)]


@pytest.mark.parametrize(
    ("given", "evicted"),
    [(signals([[0, 2]], weights=[[0.25, 0.75]]), 0), (signals([[0, 2]]), 0), (None, 0)],
)
def test_where_scores_are_missing_weights_and_then_uses_stand_in(given, evicted):
    cache = Cache(1, 4, 2, 2)
    assert cache.observe(0, [1, 0, 1, 0], {0, 2}, (), frozenset(), given) == []
    # By weights 0 has .125 / 2 and 2 has .375 / 2; by uses they are equal, and the lower id goes.
    assert cache.observe(0, [0, 1, 0, 0], {0, 2}, {1}) == [Swap(evicted, 1)]


def forecast(layer, workload, idle):
    return Forecast(layer, workload, ResidencyView(set(), slots=3), idle)


@pytest.mark.parametrize(
    ("idle", "chosen"),
    [
        # Layer 2's expert 1 brings it from 9 to 4, layer 1's 0 from 4 to 1; then 2 brings nothing.
        ((99, 99), [(2, 1), (1, 0)]),
        ((9, 99), [(2, 1)]),  # one copy is all that fits before layer 1
        ((4, 99), []),
    ],
)
def test_prefetching_goes_by_impact(idle, chosen):
    ahead = [forecast(1, [1, 0, 0, 0], idle[0]), forecast(2, [0, 4, 1, 0], idle[1])]
    assert Prefetch().plan(ahead, BY_HAND) == chosen


def test_it_looks_three_layers_ahead():
    assert (Prefetch().predictor, Prefetch().distance, Prefetch().depth) == ("next_gate", 1, 3)
