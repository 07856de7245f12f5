"""Corrections follow a machine that changed, and cannot be made to swing."""

from __future__ import annotations

import math
from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.hardware.cost import ExpertCosts
from dali.policies.correction import CorrectedCosts, Correction


def changes(correction, ratios):
    """After which observations it changed, and to what."""
    return [
        (index, correction.applied) for index, ratio in enumerate(ratios, 1) if correction.note(1.0, ratio)
    ]


def most_changes(observations, rest, longest):
    """By the promise, worked out step by step: the n-th change comes a doubled rest after the one before."""
    at, count = rest, 0
    while at <= observations:
        count, rest = count + 1, min(2 * rest, longest)
        at += rest
    return count


def test_what_is_as_predicted_changes_nothing():
    assert changes(Correction(), [1.0] * 5000) == []


def test_what_stays_within_the_band_changes_nothing():
    assert changes(Correction(), islice(cycle([0.82, 1.2]), 5000)) == []
    assert changes(Correction(), [1.24] * 5000) == []


def test_a_machine_that_is_half_as_fast_is_believed_once():
    found = changes(Correction(), [2.0] * 20_000)
    assert [index for index, _ in found] == [512]  # when the first rest is over
    assert found[0][1] == pytest.approx(2.0, rel=1e-3)  # of 512 observations, 1 - (63/64)^512 of the way


def test_a_single_outlier_is_not_believed():
    correction = Correction()
    assert changes(correction, [*[1.0] * 1000, 1e9, *[1.0] * 1000]) == []


def test_a_machine_that_recovers_is_believed_after_the_rest():
    found = changes(Correction(rest=100), [*[2.0] * 1000, *[1.0] * 1000])
    assert len(found) <= most_changes(2000, 100, 2**18)
    assert found[0][1] > 1.25
    assert found[-1][1] == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("period", [1, 2, 7, 64, 100, 512, 1000, 3000])
@pytest.mark.parametrize("ratio", [1.3, 3.0, 100.0])
def test_no_timing_makes_it_swing(period, ratio):
    """Square waves of every period, up to 10,000 between slowest and fastest."""
    waves = cycle([ratio] * period + [1 / ratio] * period)
    correction = Correction(rest=64, longest=4096)
    assert len(changes(correction, islice(waves, 50_000))) <= most_changes(50_000, 64, 4096)


def test_one_who_sees_the_state_and_always_answers_with_the_contrary_makes_it_swing_no_more_often():
    correction, found = Correction(rest=64, longest=4096), 0
    for _ in range(50_000):
        contrary = 1e-3 if correction.applied > 1 else 1e3
        found += correction.note(1.0, contrary)
    assert found <= most_changes(50_000, 64, 4096) == 17
    assert 1 / 8 <= correction.applied <= 8


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 400)), min_size=1, max_size=12))
def test_whatever_is_observed_the_promise_holds(parts):
    ratios = [ratio for ratio, count in parts for _ in range(count)]
    correction = Correction(rest=32, longest=256)
    found = changes(correction, ratios)
    assert len(found) <= most_changes(len(ratios), 32, 256)
    assert all(1 / 8 - 1e-9 <= ratio <= 8 + 1e-9 for _, ratio in found)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_ignored(bad):
    correction = Correction(rest=1)
    assert not correction.note(bad, 1.0)
    assert not correction.note(1.0, bad)
    assert correction.applied == 1.0


COSTS = ExpertCosts([0.0, 2.0, 3.0], [0.0, 1.0, 1.0], 4.0, 6.0, launch=0.5, handover=0.25)


def test_what_is_observed_changes_the_cpus_times_and_the_links_alone():
    costs = CorrectedCosts(COSTS)
    assert sum(costs.note_cpu(2.0, 6.0) for _ in range(1000)) == 1
    assert costs.now.cpu == pytest.approx([0.0, 6.0, 9.0], rel=1e-3)
    assert (costs.now.link, costs.now.link_contended) == (4.0, 6.0)
    assert sum(costs.note_copies(3, 36.0) for _ in range(1000)) == 1  # 12 each, at most 6
    assert costs.now.link == pytest.approx(8.0, rel=1e-3)
    assert costs.now.link_contended == pytest.approx(12.0, rel=1e-3)
    assert costs.now.cpu == pytest.approx([0.0, 6.0, 9.0], rel=1e-3)
    assert (costs.now.gpu, costs.now.launch, costs.now.handover) == (COSTS.gpu, 0.5, 0.25)
    assert costs.given is COSTS


def test_copies_that_take_what_they_take_alone_or_beside_a_cpu_that_computes_are_as_predicted():
    costs = CorrectedCosts(COSTS)
    assert not any(costs.note_copies(1 + i % 3, (1 + i % 3) * (4.0 + i % 2 * 2.0)) for i in range(5000))
    assert not any(costs.note_copies(0, 0.0) for _ in range(1000))
    assert costs.now is COSTS


def test_a_link_that_is_faster_than_it_takes_alone_is_believed():
    costs = CorrectedCosts(COSTS)
    assert sum(costs.note_copies(2, 4.0) for _ in range(1000)) == 1
    assert costs.link.applied == pytest.approx(0.5, rel=1e-3)
