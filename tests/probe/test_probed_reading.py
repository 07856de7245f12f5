"""Readings of one figure: repeated while they differ, refused where they are none."""

from __future__ import annotations

from itertools import chain, count
from itertools import repeat as forever

import pytest

from dali.errors import DaliError
from dali.probe.reading import LEAST, MOST, Reading, check_order, many, repeat


def reading(values, seconds=1e9):
    """Of these, each a second later by the clock."""
    left, clock = iter(values), count()
    return repeat("it", lambda: next(left), lambda: float(next(clock)), seconds)


def test_steady_readings_are_few():
    assert reading([2.0, 2.0, 2.02]) == Reading(2.0, 0.0, LEAST)


def test_noisy_ones_are_repeated_and_their_median_and_spread_kept():
    # 1 2 3 4 ... 15: the median is 8, half of them lie within 4 of it.
    assert reading(range(1, 16)) == Reading(8, 0.5, MOST)


def test_time_that_is_over_ends_it():
    assert reading([1.0, 2.0, 3.0, 4.0], seconds=0.0) == Reading(2.0, 0.5, 3)


def test_readings_that_become_steady_end():
    assert reading([1.0, 3.0, 5.0, 5.0, 5.0, 9.0]).count == 5


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan"), float("inf")])
def test_what_is_no_time_is_left_out(bad):
    assert reading([bad, 1.0, bad, 1.0, 1.0]) == Reading(1.0, 0.0, 3)


def test_a_clock_that_jumps_is_said():
    with pytest.raises(
        DaliError, match=r"0 of \d+ readings of it are times at all: the clock jumps"
    ) as caught:
        reading(forever(-1.0))
    assert "dali bench hw" in caught.value.fix


def test_readings_ten_times_apart_are_refused_only_if_they_stay_so():
    with pytest.raises(DaliError, match="Readings of it are 11 times apart"):
        reading(chain.from_iterable(forever([1.0, 11.0])))
    outlier = reading([1.0, 1.0, 1.2, 50.0, 1.4])
    assert outlier.value == 1.0


def test_a_rate_has_the_spread_of_its_seconds():
    assert Reading(2.0, 0.1, 3).under(10.0) == Reading(5.0, 0.1, 3)


def test_short_calls_share_a_reading():
    calls = iter([1e-3, 4e-3, 2e-3, 5e-3, 5e-3])
    assert many(lambda: next(calls))() == pytest.approx(2e-3)  # 1 + 4 + 2 ms are enough
    assert many(lambda: next(calls), share=4)() == pytest.approx(5e-3)  # 20 ms already


def test_more_tokens_may_take_less_but_not_ten_times():
    check_order("it", {1: Reading(9.0, 0, 3), 2: Reading(1.0, 0, 3), 4: Reading(5.0, 0, 3)})
    with pytest.raises(DaliError, match="it: 2 tokens took 11 times less than 1"):
        check_order("it", {1: Reading(11.0, 0, 3), 2: Reading(1.0, 0, 3)})
