"""What is said of a machine that was not fit to be measured, by made-up moments."""

from __future__ import annotations

import pytest

from dali.probe.watch import Moment, Watch, moment

BEGIN = Moment(busy=100, stolen=5, whole=1000, own=10, steps=0, wall=50)


def notes(end, paces=(1.0, 1.0)):
    moments, pace = iter([BEGIN, end]), iter(paces)
    paces = {"processor": lambda: next(pace), "memory": lambda: 1.0}
    return Watch(paces, lambda: next(moments), lambda: 3.5, cores=4).notes()


def test_a_quiet_machine_is_not_spoken_of():
    # 200 s of four cores: 190 busy, 185 of them this process.
    assert notes(Moment(290, 5, 1200, 195, 50, 100)) == []


def test_other_programs_are_said_with_the_load_before():
    # 190 busy, 90 of them this process: half of 200 s are others'.
    (said,) = notes(Moment(290, 5, 1200, 100, 50, 100))
    assert "Other programs took 50 %" in said
    assert "load average before: 3.5, on 4 cores" in said


def test_stolen_time_is_said():
    (said,) = notes(Moment(280, 25, 1200, 185, 50, 100))
    assert "took 10 % of its processors away" in said


def test_a_processor_that_slows_down_is_said():
    (said,) = notes(Moment(290, 5, 1200, 195, 50, 100), paces=(1.0, 1.3))
    assert said.startswith("The processor was 30 % slower at the end than at first")
    (said,) = notes(Moment(290, 5, 1200, 195, 50, 100), paces=(1.5, 1.0))
    assert "50 % slower at first" in said


@pytest.mark.parametrize("wall", [4000.0, -900.0])
def test_a_clock_that_was_set_is_said(wall):
    (said,) = notes(Moment(290, 5, 1200, 195, 50, wall))
    assert "clock jumped" in said


def test_a_system_that_does_not_count_is_no_busy_one():
    assert notes(Moment(100, 5, 1000, 12, 50, 100)) == []


def test_moments_pass():
    first, second = moment(), moment()
    assert second.steps >= first.steps
    assert second.whole >= first.whole >= 0
