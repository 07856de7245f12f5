"""Bounds hold, and are reached where they say so."""

from random import Random

import pytest
from tiny_traces import random_trace, trace_of

from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView
from dali.replay.bounds import LeastSeconds, best_assignment, pooled_belady
from dali.replay.eviction import POLICIES, replay
from dali.replay.steps import forwards
from policies.assignment_cases import BY_HAND, brute_force, random_layer


@pytest.mark.parametrize("seed", range(40))
def test_the_best_assignment_equals_trying_every_plan(seed):
    workload, view, costs = random_layer(Random(seed), 6, in_flight=False)
    found = best_assignment(workload, view, costs)
    assert found.seconds == pytest.approx(makespan(found.plan, workload, view, costs))
    assert found.seconds == pytest.approx(brute_force(workload, view, costs), abs=1e-12)
    assert found.bound == found.seconds


def test_a_search_cut_short_still_bounds(monkeypatch):
    workload, view, costs = random_layer(Random(3), 12, in_flight=False)
    whole = best_assignment(workload, view, costs)
    monkeypatch.setattr("dali.replay.bounds.MOST_NODES", 3)
    short = best_assignment(workload, view, costs)
    assert short.bound <= whole.seconds <= short.seconds


def test_experts_in_flight_are_not_covered():
    with pytest.raises(ValueError, match="in flight"):
        best_assignment([1, 0], ResidencyView(frozenset(), {0: 1.0}, 1), BY_HAND)


@pytest.mark.parametrize("seed", range(60))
def test_no_plan_is_faster_than_the_least_makespan(seed):
    workload, view, costs = random_layer(Random(seed), 6, in_flight=False)
    least = LeastSeconds(len(view.resident), costs).makespan(workload)
    assert least <= brute_force(workload, view, costs) * (1 + 1e-9)


def test_the_least_makespan_by_hand():
    # Experts may be split here. Two residents, 4 on the CPU or 1 on the accelerator: a fifth of both on the CPU.
    assert LeastSeconds(2, BY_HAND).makespan([1, 1]) == pytest.approx(4 * 2 / 5, rel=0.03)
    # One absent: 4 on the CPU or a copy of 5, five ninths of it on the CPU.
    assert LeastSeconds(0, BY_HAND).makespan([1, 0]) == pytest.approx(5 * 4 / 9, rel=0.03)
    assert LeastSeconds(0, BY_HAND).makespan([0, 0]) == 0


def test_copies_ahead_of_a_layer_still_take_the_link():
    least = LeastSeconds(0, BY_HAND)
    alone = least.makespan([1, 1])
    assert least.run([[1, 1]] * 10, [0.0] * 10) == pytest.approx(10 * alone)
    hidden = least.run([[1, 1]] * 10, [100.0] * 10)  # dense parts that hide every copy
    assert 1000 < hidden < 1000 + 10 * alone


def test_one_pool_for_one_layer_is_belady_with_bypass():
    trace = random_trace(layers=1, answer=30)
    steps = forwards(trace, 2)
    assert pooled_belady(trace, steps, 3) == pytest.approx(replay(trace, steps, 3, "belady-bypass").rate)


def test_a_pool_by_hand():
    trace = trace_of([[0], [1], [2], [0], [1], [2]], 3)
    assert pooled_belady(trace, forwards(trace, 1), 2) == pytest.approx(4 / 6)
    assert pooled_belady(trace, forwards(trace, 1), 0) == 0


def test_a_pool_beats_equal_shares():
    trace = random_trace(layers=3, answer=40)
    steps = forwards(trace, 1)
    best = pooled_belady(trace, steps, 9)
    assert all(replay(trace, steps, 3, policy).rate <= best for policy in POLICIES)
