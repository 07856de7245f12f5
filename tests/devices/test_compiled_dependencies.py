"""Compiled or not, the same dependencies are derived."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.devices import Dependencies, Operation, Stream
from dali.devices.dependencies import dependencies
from dali.kernels import native

STREAMS = 4

_keys = st.sets(st.integers(0, 6), max_size=3)
_issue = st.tuples(st.just("issue"), st.integers(0, STREAMS - 1), _keys, _keys)
_wait = st.tuples(st.just("wait"), st.integers(0, 30))  # for an operation, counted back from the newest
_settle = st.tuples(st.just("settle"), _keys)
programs = st.lists(_issue | _issue | _issue | _wait | _settle, min_size=5, max_size=60)


def answers(made: Dependencies, program: list[Any]) -> list[list[int]]:
    """The numbers of the operations that each step must wait for."""
    streams = [Stream(str(number), number) for number in range(STREAMS)]
    issued: list[Operation] = []
    found = []
    for kind, *step in program:
        if kind == "issue":
            number, reads, writes = step
            issued.append(Operation(streams[number], "", lambda: None))
            made.derive(issued[-1], reads, writes)
            found.append([issued[-1].number, *[earlier.number for earlier in issued[-1].waits]])
        elif kind == "wait" and step[0] < len(issued):
            made.host_waited(issued[-1 - step[0]])
        elif kind == "settle":
            before = made.before((), step[0])
            found.append([earlier.number for earlier in before])
            for earlier in before:
                made.host_waited(earlier)
            made.forget(step[0])
    return [*found, [made.derived]]


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@settings(deadline=None, max_examples=300)
@given(programs, st.none() | st.integers(0, 10))
def test_both_derive_the_same(program: list[Any], drop: int | None) -> None:
    compiled, plain = dependencies(drop), Dependencies(drop)
    assert type(compiled) is not type(plain)
    assert answers(compiled, program) == answers(plain, program)


def test_with_compiled_code_off_the_readable_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "torch")
    assert type(dependencies()) is Dependencies
