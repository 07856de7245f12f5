from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings

from dali.devices import Dependencies, Operation, RaceDetector, RaceError, SimDevice, Stream
from dali.devices.dependencies import dependencies
from devices.programs import Program, programs, run
from devices.sanitizer import SanitizerFeed

Step = Callable[[RaceDetector], None]
COPY, COMPUTE = Stream("copy", 0), Stream("compute", 1)


def operation(stream: Stream, label: str, number: int, *waits: Operation) -> Operation:
    one = Operation(stream, label, lambda: None)
    one.number, one.waits = number, waits
    return one


@pytest.fixture(params=["vector clocks", "torch's sanitizer"])
def verdict(request: pytest.FixtureRequest) -> Callable[..., bool]:
    """Whether a detector finds a race in a story of operations (with reads and writes) and host waits."""

    def judge(*story: tuple[Operation, str, str] | Operation) -> bool:
        feed = SanitizerFeed()
        found = False
        for step in story:
            if isinstance(step, Operation):
                feed.host_waited(step)
                continue
            one, reads, writes = step
            try:
                feed.launched(one, set(map(ord, reads)), set(map(ord, writes)))
            except RaceError:
                found = True
        return found if request.param == "vector clocks" else bool(feed.errors)

    return judge


def test_unordered_write_and_read(verdict: Callable[..., bool]) -> None:
    fetch, expert = operation(COPY, "fetch", 0), operation(COMPUTE, "expert", 1)
    assert verdict((fetch, "", "a"), (expert, "a", ""))


def test_unordered_read_and_write(verdict: Callable[..., bool]) -> None:
    expert, fetch = operation(COMPUTE, "expert", 0), operation(COPY, "fetch", 1)
    assert verdict((expert, "a", ""), (fetch, "", "a"))


def test_unordered_writes(verdict: Callable[..., bool]) -> None:
    one, two = operation(COMPUTE, "one", 0), operation(COPY, "two", 1)
    assert verdict((one, "", "a"), (two, "", "a"))


def test_reads_of_one_buffer_and_writes_of_two_are_no_race(verdict: Callable[..., bool]) -> None:
    one, two = operation(COMPUTE, "one", 0), operation(COPY, "two", 1)
    assert not verdict((one, "a", "b"), (two, "a", "c"))


def test_a_wait_orders(verdict: Callable[..., bool]) -> None:
    fetch = operation(COPY, "fetch", 0)
    expert = operation(COMPUTE, "expert", 1, fetch)
    assert not verdict((fetch, "", "a"), (expert, "a", ""))


def test_a_wait_for_an_earlier_operation_does_not_order_a_later_one(verdict: Callable[..., bool]) -> None:
    first, second = operation(COPY, "first", 0), operation(COPY, "second", 1)
    expert = operation(COMPUTE, "expert", 2, first)
    assert verdict((first, "", "a"), (second, "", "b"), (expert, "b", ""))


def test_waits_are_transitive(verdict: Callable[..., bool]) -> None:
    fetch = operation(COPY, "fetch", 0)
    expert = operation(COMPUTE, "expert", 1, fetch)
    join = operation(Stream("host", 2), "join", 2, expert)
    assert not verdict((fetch, "", "a"), (expert, "", "b"), (join, "a", ""))


def test_a_wait_of_the_host_orders_what_it_issues_later(verdict: Callable[..., bool]) -> None:
    fetch, expert = operation(COPY, "fetch", 0), operation(COMPUTE, "expert", 1)
    assert not verdict((fetch, "", "a"), fetch, (expert, "a", ""))


def test_readers_since_the_write_all_count(verdict: Callable[..., bool]) -> None:
    one, two = operation(COMPUTE, "one", 0), operation(Stream("host", 2), "two", 1)
    fetch = operation(COPY, "fetch", 2, two)
    assert verdict((one, "a", ""), (two, "a", ""), (fetch, "", "a"))


def test_a_race_names_both_operations() -> None:
    detector = RaceDetector()
    detector.launched(operation(COPY, "fetch", 0), set(), {1})
    with pytest.raises(RaceError, match="'expert' on stream 'compute' and 'fetch' on stream 'copy'"):
        detector.launched(operation(COMPUTE, "expert", 1), {1}, set())


@pytest.mark.parametrize("make", [Dependencies, dependencies], ids=["python", "compiled"])
@settings(deadline=None, max_examples=60)
@given(program=programs)
def test_every_derived_dependency_is_needed(make: Callable[..., Dependencies], program: Program) -> None:
    """No race with all of them, a race without any one: the vector clocks and torch's sanitizer agree."""
    complete, feed = make(), SanitizerFeed()
    run(SimDevice(2**20, dependencies=complete, races=feed), program)
    assert feed.errors == []
    for drop in range(complete.derived):
        feed = SanitizerFeed()
        with pytest.raises(RaceError):
            run(SimDevice(2**20, dependencies=make(drop), races=feed), program)
        assert feed.errors != []
