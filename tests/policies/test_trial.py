"""Looking ahead is kept up where steps are shorter with it than without, and asked again the less often the longer that holds."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.trial import FIRST, LONGEST, PAIRS, SHORTEST, WON, Trial


def seen(trial: Trial, costs: dict[bool, float], steps: int) -> list[bool]:
    """Whether it was on, of a disk that has a step wait costs[on] seconds for each expert that it wants."""
    waited, wanted, on = 0.0, 0, []
    for step in range(steps):
        trial.step(3.0 * step + waited, waited, wanted)
        on.append(trial.on)
        experts = 1 + step % 3  # whatever they want
        waited, wanted = waited + experts * costs[trial.on], wanted + experts
    return on


def stretches(on: list[bool]) -> list[tuple[bool, int]]:
    """(whether it was on, for how many steps on end)."""
    found: list[tuple[bool, int]] = []
    for value in on:
        if not found or found[-1][0] != value:
            found.append((value, 0))
        found[-1] = value, found[-1][1] + 1
    return found


def test_a_comparison_takes_turns():
    on = seen(Trial(), {False: 1.0, True: 1.0}, FIRST + 2 * PAIRS)
    assert on == [False] * (FIRST - 1) + [False, True] * PAIRS + [False]


def test_what_does_not_pay_rests_longer_each_time():
    found = stretches(seen(Trial(), {False: 1.0, True: 1.001}, 8000))
    rests = [count - 1 for on, count in found[1:-1] if not on and count > 1]
    assert rests == [min(2 * SHORTEST * 2**place, LONGEST) for place in range(len(rests))]
    assert len(rests) >= 4


def test_what_pays_is_kept_up_but_for_every_other_step_of_a_comparison():
    found = stretches(seen(Trial(), {False: 1.0, True: 0.9}, 12000))
    assert max(count for on, count in found[1:] if not on) == 1
    assert max(count for on, count in found if on) == LONGEST + 1


def test_where_nothing_waits_it_stays_off():
    assert sum(seen(Trial(), {False: 0.0, True: 0.0}, 600)) <= 4 * PAIRS


def test_what_it_costs_the_cores_counts():
    trial, seconds, on = Trial(), 0.0, 0
    for step in range(200):
        trial.step(seconds, 0.5 * step, step)
        on += trial.on
        seconds += 1.01 if trial.on else 1.0  # and waits no less
    assert on == 2 * PAIRS


@pytest.mark.parametrize("won", [WON - 1, WON])
def test_pairs_are_counted_and_one_long_wait_decides_nothing(won):
    trial, waited = Trial(), 0.0
    for step in range(FIRST + 2 * PAIRS):
        trial.step(waited, waited, step)
        pair = (step - FIRST + 1) // 2
        waited += (0.9 if pair < won else 1000.0) if trial.on else 1.0
    assert trial.on == (won == WON)


@pytest.mark.skipif(library is None, reason="the kernels were not compiled")
def test_compiled_code_decides_alike():
    ours, theirs, chance, on = Trial(), library.Trial(), random.Random(0), 0
    seconds, waited, wanted = 0.0, 0.0, 0
    for step in range(6000):
        ours.step(seconds, waited, wanted)
        theirs.step(seconds, waited, wanted)
        assert ours.on == theirs.on
        on += ours.on
        experts = chance.randrange(6)
        wait = experts * chance.random() * (0.5 if ours.on and step // 1500 % 2 else 1.0)
        seconds, waited, wanted = seconds + wait + chance.random(), waited + wait, wanted + experts
    assert 100 < on < 5900
