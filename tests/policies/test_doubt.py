import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies.doubt import WINDOW, Doubt
from dali.policies.trial import LONGEST, PAIRS, SHORTEST, WON


def run(doubt: Doubt, steps: int, plan: Callable[[int], float], cpu: Callable[[int], float]) -> list[bool]:
    """Where the experts of each step were, when a step takes so much of what all of them are modelled to take on the CPU."""
    left = []
    for step in range(steps):
        left.append(doubt.on_cpu)
        modelled = 0.5 + step % 3  # no two steps are alike
        doubt.step(modelled * (cpu(step) if doubt.on_cpu else plan(step)), modelled)
    return left


def most_comparisons(steps: int) -> int:
    """By the promise, worked out step by step: a rest and a comparison, and then twice the rest."""
    count, rest, at = 0, SHORTEST, SHORTEST + 2 * PAIRS
    while at <= steps:
        count, rest = count + 1, min(2 * rest, LONGEST)
        at += rest + 2 * PAIRS
    return count


def test_plans_that_save_what_was_modelled_are_never_compared() -> None:
    assert not any(run(Doubt(), 20_000, lambda step: 0.9, lambda step: 1.0))


def test_a_few_slow_steps_raise_no_doubt() -> None:
    """A third of them, however slow."""
    assert not any(run(Doubt(), 20_000, lambda step: 0.5 if step % 3 else 50.0, lambda step: 1.0))


def test_a_model_that_is_wrong_of_both_ways_costs_one_comparison() -> None:
    """Steps take three times what is modelled, whatever they do: a long context, another program."""
    left = run(Doubt(), 20_000, lambda step: 2.4, lambda step: 3.0)
    assert sum(left) == PAIRS
    assert not any(left[: SHORTEST + WINDOW])


def test_plans_that_lose_are_reverted_and_asked_again_ever_more_rarely() -> None:
    doubt = Doubt()
    left = run(doubt, 40_000, lambda step: 1.2, lambda step: 1.0)
    assert doubt.reverted
    assert doubt.ratios == pytest.approx((1.2, 1.0))
    first = left.index(True) + 2 * PAIRS
    asked = left[first:].count(False) // PAIRS
    assert asked <= most_comparisons(40_000) == 23
    assert left[-LONGEST:].count(False) <= PAIRS


def test_a_machine_that_recovers_is_planned_for_again() -> None:
    doubt = Doubt()
    left = run(doubt, 6000, lambda step: 1.5 if step < 2000 else 0.5, lambda step: 1.0)
    assert left[1000]
    assert not doubt.reverted
    assert not any(left[-1000:])


@pytest.mark.parametrize("won", [WON - 1, WON])
def test_pairs_are_counted_and_one_long_step_decides_nothing(won: int) -> None:
    doubt, compared = Doubt(), 0

    def cpu(step: int) -> float:
        nonlocal compared
        compared += 1
        return 0.9 if compared <= won else 1000.0

    run(doubt, SHORTEST - 1 + WINDOW + 2 * PAIRS, lambda step: 1.0, cpu)
    assert compared == PAIRS
    assert doubt.reverted == (won == WON)


@pytest.mark.parametrize("period", [1, 2, 3, 16, 17, 64, 100, 500, 2048, 5000])
def test_no_timing_makes_it_swing(period: int) -> None:
    """Either way is a hundred times faster in turn."""
    doubt, changes = Doubt(), 0
    for step in range(30_000):
        favoured = step // period % 2 == 0
        changes += doubt.step(1.0 if doubt.on_cpu == favoured else 100.0, 1.0)
    assert changes <= most_comparisons(30_000)


def test_one_who_sees_the_state_and_always_punishes_it_makes_it_swing_no_more_often() -> None:
    doubt, changes = Doubt(), 0
    for _ in range(100_000):
        changes += doubt.step(100.0 if doubt.on_cpu == doubt.reverted else 1.0, 1.0)
    assert 40 < changes <= most_comparisons(100_000) == 52


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 600)), min_size=1, max_size=9
    )
)
def test_whatever_is_observed_the_promise_holds(parts: list[tuple[float, float, int]]) -> None:
    doubt, changes, steps = Doubt(), 0, 0
    for plan, cpu, count in parts:
        for _ in range(count):
            changes += doubt.step(cpu if doubt.on_cpu else plan, 1.0)
        steps += count
    assert changes <= most_comparisons(steps)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_ignored(bad: float) -> None:
    doubt = Doubt()
    for _ in range(1000):
        assert not doubt.step(bad, 1.0)
        assert not doubt.step(1.0, bad)
    assert not any(run(doubt, SHORTEST, lambda step: 2.0, lambda step: 1.0))
