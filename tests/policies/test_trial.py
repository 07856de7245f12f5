"""Looking ahead is kept up where steps wait less with it than without, and asked again the less often the longer that holds."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.trial import GAIN, LONGEST, SHORTEST, WINDOW, Trial


def stretches(trial: Trial, costs: dict[bool, float], steps: int) -> list[tuple[bool, int]]:
    """(whether it was on, for how many steps on end), of a disk that has a step wait for costs[on] seconds."""
    stalled, seen = 0.0, []
    for _ in range(steps):
        trial.step(stalled)
        if not seen or seen[-1][0] != trial.on:
            seen.append((trial.on, 0))
        seen[-1] = trial.on, seen[-1][1] + 1
        stalled += costs[trial.on]
    return seen


def test_what_does_not_pay_rests_longer_each_time():
    seen = stretches(Trial(), {False: 1.0, True: GAIN + 0.01}, 5000)
    assert [count for on, count in seen if on] == [WINDOW] * len([1 for on, _ in seen if on])
    rests = [count - WINDOW for on, count in seen[1:-1] if not on]
    assert rests == [2 * SHORTEST * 2**i for i in range(len(rests))][: len(rests)]
    assert len(rests) >= 4


def test_what_pays_is_kept_up_but_for_the_comparison():
    seen = stretches(Trial(), {False: 1.0, True: 0.5}, 9000)
    assert [count for on, count in seen[1:-1] if not on] == [WINDOW] * (len(seen[1:-1]) // 2)
    assert max(count for on, count in seen if on) == LONGEST + WINDOW


def test_where_nothing_waits_it_stays_off():
    seen = stretches(Trial(), {False: 0.0, True: 0.0}, 600)
    assert sum(count for on, count in seen if on) <= 4 * WINDOW


@pytest.mark.skipif(library is None, reason="the kernels were not compiled")
def test_compiled_code_decides_alike():
    ours, theirs, chance, stalled = Trial(), library.Trial(), random.Random(0), 0.0
    for step in range(6000):
        ours.step(stalled)
        theirs.step(stalled)
        assert ours.on == theirs.on
        stalled += chance.random() * (0.5 if ours.on and step // 1500 % 2 else 1.0)
