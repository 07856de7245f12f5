"""The virtual clock: when each operation would have started and ended, from modelled seconds alone.

An operation starts when its stream is free, what it waits for has ended, and the host has issued it. The
host's own time passes only while it waits. A copy progresses at its contended speed exactly while the host
stream computes (both read the same DRAM). The order in which the simulator really runs operations does not
matter here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from dali.devices.base import MisuseError
from dali.devices.dependencies import HOST, Operation, Stream

REMEMBERED = 100_000  # spans


class Span(NamedTuple):
    """One operation on the timeline; modelled seconds since the clock's start."""

    stream: str
    label: str
    start: float
    end: float


@dataclass
class _Task:
    operation: Operation
    waits: tuple[Operation, ...]
    alone: float  # seconds
    contended: float
    start: float = -1.0
    left: float = 1.0  # share of the work still to do


class VirtualClock:
    """`now` is the host's time, `timeline` the last operations that have ended by then, in that order.

    `busy`: the seconds each stream has spent on operations; `alone`: those in which no other had any to do.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.timeline: deque[Span] = deque(maxlen=REMEMBERED)
        self.busy: dict[str, float] = {}
        self.alone: dict[str, float] = {}
        self._queues: dict[Stream, deque[_Task]] = {}
        self._pending: set[Operation] = set()

    def issue(self, operation: Operation) -> None:
        """Queue an operation at the host's present time."""
        if not all(0 <= seconds < float("inf") for seconds in operation.seconds):
            raise MisuseError(f"{operation} was given modelled times of {operation.seconds} seconds.")
        queue = self._queues.setdefault(operation.stream, deque())
        queue.append(_Task(operation, operation.waits, *operation.seconds))
        self._pending.add(operation)

    def ended(self, operation: Operation) -> bool:
        """Whether the operation has ended by the host's present time; asking takes no time."""
        self._advance(operation, within=0.0)
        return operation not in self._pending

    def wait(self, operation: Operation) -> None:
        """Let the host's time pass until the operation has ended."""
        self._advance(operation, within=float("inf"))

    def cancel(self) -> None:
        """Forget what has not ended."""
        self._queues.clear()
        self._pending.clear()

    def _advance(self, until: Operation, within: float) -> None:
        """Go from one end of an operation to the next, each within so many seconds, until that one."""
        while until in self._pending and self._step(within):
            pass

    def _step(self, within: float) -> bool:
        """Move to the next moment at which some operation ends, if it is that near."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        running = [head for head in heads if self._pending.isdisjoint(head.waits)]
        busy = any(task.operation.stream.name == HOST for task in running)
        durations = [task.contended if busy else task.alone for task in running]
        remaining = [task.left * seconds for task, seconds in zip(running, durations, strict=True)]
        step = min(remaining)
        if step > within:
            return False
        ended_at = self.now + step
        if len(running) == 1:
            name = running[0].operation.stream.name
            self.alone[name] = self.alone.get(name, 0.0) + step
        for task, seconds, rest in zip(running, durations, remaining, strict=True):
            if task.start < 0:
                task.start = self.now
            if rest > step:
                task.left -= step / seconds
                continue
            stream = task.operation.stream
            self._queues[stream].popleft()
            self._pending.discard(task.operation)
            self.timeline.append(Span(stream.name, task.operation.label, task.start, ended_at))
            self.busy[stream.name] = self.busy.get(stream.name, 0.0) + ended_at - task.start
        self.now = ended_at
        return True
