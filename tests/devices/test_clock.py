from __future__ import annotations

import math

import pytest

from dali.devices.base import MisuseError
from dali.devices.clock import VirtualClock
from dali.devices.dependencies import Operation, Stream


class Story:
    """Operations on a clock, by label; the timeline as text."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.streams: dict[str, Stream] = {}
        self.issued: dict[str, Operation] = {}

    def issue(
        self, stream: str, label: str, seconds: float, contended: float | None = None, *after: str
    ) -> None:
        place = self.streams.setdefault(stream, Stream(stream, len(self.streams)))
        operation = Operation(
            place, label, lambda: None, (seconds, seconds if contended is None else contended)
        )
        operation.waits = tuple(self.issued[name] for name in after)
        self.clock.issue(operation)
        self.issued[label] = operation

    def wait(self, label: str) -> float:
        self.clock.wait(self.issued[label])
        return self.clock.now

    def timeline(self) -> list[str]:
        return [f"{one.stream} {one.label} {one.start:g}-{one.end:g}" for one in self.clock.timeline]


def test_streams_run_side_by_side_and_their_operations_one_after_another() -> None:
    story = Story()
    story.issue("copy", "a", 2)
    story.issue("copy", "b", 2)
    story.issue("compute", "c", 3)
    assert story.wait("b") == 4
    assert story.timeline() == ["copy a 0-2", "compute c 0-3", "copy b 2-4"]


def test_an_operation_starts_when_what_it_waits_for_has_ended() -> None:
    story = Story()
    story.issue("copy", "fetch", 5)
    story.issue("compute", "resident", 1)
    story.issue("compute", "fetched", 2, None, "fetch")
    assert story.wait("fetched") == 7
    assert story.timeline() == ["compute resident 0-1", "copy fetch 0-5", "compute fetched 5-7"]


def test_the_host_issues_later_work_later() -> None:
    story = Story()
    story.issue("compute", "a", 3)
    assert story.wait("a") == 3
    story.issue("copy", "b", 1)
    assert story.wait("a") == 3  # has ended: no time passes
    assert story.wait("b") == 4
    assert story.timeline() == ["compute a 0-3", "copy b 3-4"]


def test_a_wait_leaves_longer_operations_under_way() -> None:
    story = Story()
    story.issue("copy", "prefetch", 10)
    story.issue("compute", "a", 4)
    assert story.wait("a") == 4
    assert not story.clock.ended(story.issued["prefetch"])
    story.issue("compute", "b", 2)
    assert story.wait("prefetch") == 10
    assert story.timeline() == ["compute a 0-4", "compute b 4-6", "copy prefetch 0-10"]


def test_a_copy_is_slower_exactly_while_the_host_computes() -> None:
    story = Story()
    story.issue("copy", "fetch", 2, 4)
    story.issue("host", "cpu", 1)
    assert story.wait("fetch") == 2.5  # a quarter in the first second, the rest at 1.5 a second
    assert story.timeline() == ["host cpu 0-1", "copy fetch 0-2.5"]


def test_contention_that_begins_in_the_middle_of_a_copy() -> None:
    story = Story()
    story.issue("copy", "fetch", 4, 8)
    story.issue("compute", "gate", 2)
    story.issue("host", "cpu", 9, None, "gate")
    assert story.wait("cpu") == 11
    assert story.timeline() == ["compute gate 0-2", "copy fetch 0-6", "host cpu 2-11"]


def test_operations_without_duration_end_at_once_and_in_order() -> None:
    story = Story()
    story.issue("compute", "a", 0)
    story.issue("host", "b", 0, None, "a")
    story.issue("compute", "c", 0, None, "b")
    assert story.wait("c") == 0
    assert story.timeline() == ["compute a 0-0", "host b 0-0", "compute c 0-0"]


def test_cancelled_operations_take_no_time() -> None:
    story = Story()
    story.issue("compute", "a", 3)
    story.clock.cancel()
    assert story.wait("a") == 0
    assert story.timeline() == []


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(MisuseError, match="'a' on stream 'compute' was given modelled times of"):
        Story().issue("compute", "a", seconds)
