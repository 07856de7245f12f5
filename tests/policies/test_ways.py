"""Of two ways of reading the faster one goes on, whatever steps take, and finding that out costs next to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.trial import FIRST, LONGEST, PAIRS, SHORTEST, WON
from dali.policies.ways import LOST, Ways

COMPUTING = 0.3  # seconds of a step, beside reading


def run(
    ways: Ways, steps: int, usual: Callable[[int], float], other: Callable[[int], float]
) -> list[tuple[bool, int]]:
    """How each step read, and how many experts it wanted, where it waited so many seconds for each."""
    seen = []
    for step in range(steps):
        wanted = 1 + step * 7 % 5  # no two steps are alike
        seen.append((ways.other, wanted))
        waited = wanted * (other(step) if ways.other else usual(step))
        ways.step(COMPUTING + waited, waited, wanted)
    return seen


def most_comparisons(steps: int) -> int:
    """By the promise, worked out step by step: a rest, as few pairs as decide, and then twice the rest."""
    shortest = 2 * LOST
    count, rest, at = 0, SHORTEST, FIRST + shortest
    while at <= steps:
        count, rest = count + 1, min(2 * rest, LONGEST)
        at += rest + shortest
    return count


def test_a_way_that_is_confirmed_costs_three_steps_the_other_way():
    ways = Ways()
    seen = run(ways, FIRST + 20, lambda step: 1.0, lambda step: 1.1)
    assert [was for was, _ in seen] == [False] * FIRST + [False, True] * 3 + [False] * 14
    assert not ways.reverted


def test_a_way_that_loses_is_left_as_soon_as_six_pairs_are_lost():
    ways = Ways()
    seen = run(ways, 100, lambda step: 1.1, lambda step: 1.0)
    assert ways.reverted
    assert [was for was, _ in seen] == [False] * FIRST + [False, True] * 6 + [True] * 80
    assert ways.ratios[0] > ways.ratios[1]


@pytest.mark.parametrize("ratio", [1.0, 1.01, 1.2, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("right", [True, False])
def test_on_constant_timings_no_more_than_a_fiftieth_is_lost(ratio, right):
    """At any step since the first comparison."""
    usual, other = (1.0, ratio) if right else (ratio, 1.0)
    seen = run(Ways(), 20_000, lambda step: usual, lambda step: other)
    took = best = 0.0
    for was, wanted in seen[FIRST + 2 * (LOST if right else WON) :]:
        took += COMPUTING + wanted * (other if was else usual)
        best += COMPUTING + wanted * min(usual, other)
        assert took <= best / 0.98
    assert sum(was != (not right) for was, _ in seen) >= (
        6 if right else FIRST + WON + 3
    )  # it was asked again


def test_a_disk_that_changes_is_found_out_in_both_directions():
    ways = Ways()
    seen = run(ways, 12_000, lambda step: 1.5 if 3000 <= step < 6000 else 1.0, lambda step: 1.2)
    taken = [was for was, _ in seen]
    assert sum(taken[:3000]) < 50
    assert all(taken[5000:6000]) or sum(taken[5000:6000]) > 980
    assert not ways.reverted
    assert sum(taken[-1000:]) < 20


@pytest.mark.parametrize("won", [WON - 1, WON])
def test_pairs_are_counted_and_one_long_step_decides_nothing(won):
    ways, compared = Ways(), 0

    def other(step: int) -> float:
        nonlocal compared
        compared += 1
        return 0.5 if compared not in range(2, 2 + PAIRS - won) else 1000.0

    run(ways, FIRST + 2 * PAIRS, lambda step: 1.0, other)
    assert ways.reverted == (won == WON)


@pytest.mark.parametrize("period", [1, 2, 3, 16, 17, 64, 100, 500, 2048, 5000])
def test_no_timing_makes_it_swing(period):
    """Either way is faster in turn."""
    ways, changes = Ways(), 0
    for step in range(30_000):
        favoured = step // period % 2 == 0
        changes += ways.step(1.0 if ways.other == favoured else 1.3, 0.5, 3)
    assert changes <= most_comparisons(30_000)


def test_one_who_sees_the_state_and_always_punishes_it_makes_it_swing_no_more_often():
    ways, changes = Ways(), 0
    for _ in range(100_000):
        changes += ways.step(1.01 if ways.other == ways.reverted else 1.0, 0.5, 3)
    assert 40 < changes <= most_comparisons(100_000)


def test_a_comparison_that_would_cost_much_is_not_made_soon():
    seen = run(Ways(), 40_000, lambda step: 1.0, lambda step: 100.0)
    assert sum(was for was, _ in seen) == 6  # the first, and one more


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 9), st.integers(1, 600)),
        min_size=1,
        max_size=9,
    )
)
def test_whatever_is_observed_the_promise_holds(parts):
    ways, changes, steps = Ways(), 0, 0
    for usual, other, wanted, count in parts:
        for _ in range(count):
            took = other if ways.other else usual
            changes += ways.step(took, took / 2, wanted)
        steps += count
    assert changes <= most_comparisons(steps)


@pytest.mark.parametrize(
    "bad",
    [(0.0, 0.0, 1), (-1.0, 0.0, 1), (math.nan, 0.0, 1), (math.inf, 0.0, 1), (1.0, 2.0, 1), (1.0, 0.5, 0)],
)
def test_what_is_no_time_or_read_nothing_is_ignored(bad):
    ways = Ways()
    for _ in range(1000):
        assert not ways.step(*bad)
    assert not any(was for was, _ in run(ways, FIRST, lambda step: 2.0, lambda step: 1.0))
