"""What must run before what, derived from the buffers that operations declare.

An operation waits for the last writer of every buffer it touches and, where it writes, for the readers
since. Waits that another wait, its own stream or the host already implies are left out, so each derived
dependency is the only thing that orders some pair of accesses: taking any one away is a race.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch

COMPUTE = "compute"  # the stream of the accelerator's kernels, the framework's own included
HOST = "host"  # the stream of the CPU's experts

Clock = dict[int, int]  # stream number -> how many of its operations have gone before


def join(clock: Clock, other: Clock) -> None:
    """Advance `clock` to what either has seen."""
    for stream, count in other.items():
        if clock.get(stream, 0) < count:
            clock[stream] = count


class Stream:
    """A queue of operations that run one after another, in the order they were issued."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.issued = 0
        self.tail: Operation | None = None  # the newest operation
        self.clock: Clock = {}  # what has gone before by the time the newest operation ends
        self.awaited: list[Operation] = []  # explicit waits, for the next operation


class Operation:
    """One launch or copy. `waits`: operations of other streams, as the order of its own goes without saying.

    `seconds`: its modelled duration, alone and while the host stream computes.
    """

    def __init__(
        self, stream: Stream, label: str, fn: Callable[[], object], seconds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.stream = stream
        self.label = label
        self.fn: Callable[[], object] | None = fn
        self.seconds = seconds
        self.waits: tuple[Operation, ...] = ()
        self.clock: Clock = {}
        self.index = -1  # place in its stream
        self.number = -1  # place among all operations, in the order of issue
        self.ran: bool | None = None  # None: pending; False: failed or cancelled
        self.handle: Any = None  # what the device waits on
        self.target: torch.Tensor | None = None  # of a copy: the bytes it fills

    def __repr__(self) -> str:
        return f"{self.label!r} on stream {self.stream.name!r}"

    def finish(self, ran: bool) -> None:
        """Note the outcome and let go of what the operation held: tensors, and the operations before it."""
        self.ran, self.fn, self.target, self.waits = ran, None, None, ()


class Dependencies:
    """Derives each operation's waits. Buffers are known by their storage's key.

    `drop` leaves out the n-th derived wait (from 0): mutation tests only.
    """

    def __init__(self, drop: int | None = None) -> None:
        self.derived = 0
        self._drop = drop
        self._issued = 0
        self._writer: dict[int, Operation] = {}
        self._readers: dict[int, dict[int, Operation]] = {}  # since the write, each stream's latest
        self._host: Clock = {}  # what the host has waited for goes before all it issues from then on

    def derive(self, operation: Operation, reads: Set[int], writes: Set[int]) -> None:
        """Number the operation, set its `waits` and remember its accesses."""
        stream = operation.stream
        clock = dict(stream.clock)
        join(clock, self._host)
        waits = []
        # Newest first: what a newer operation waited for comes with it, never the other way round.
        for earlier in self.before(reads, writes, stream.awaited):
            if earlier.index < clock.get(earlier.stream.number, 0):
                continue
            join(clock, earlier.clock)
            if earlier not in stream.awaited:
                self.derived += 1
                if self.derived - 1 == self._drop:
                    continue
            waits.append(earlier)
        operation.index, operation.number = stream.issued, self._issued
        stream.issued += 1
        self._issued += 1
        clock[stream.number] = stream.issued
        operation.clock = stream.clock = clock
        operation.waits = tuple(waits)
        stream.awaited.clear()
        for key in reads:
            self._readers.setdefault(key, {})[stream.number] = operation
        for key in writes:
            self._writer[key] = operation
            self._readers.pop(key, None)

    def before(self, reads: Set[int], writes: Set[int], also: Sequence[Operation] = ()) -> list[Operation]:
        """What must come before such accesses, newest first: the last writers; for writes, readers since."""
        found = {self._writer[key] for key in reads | writes if key in self._writer}.union(also)
        for key in writes & self._readers.keys():
            found.update(self._readers[key].values())
        return sorted(found, key=lambda operation: operation.number, reverse=True)

    def host_waited(self, operation: Operation) -> None:
        """The host has seen this operation end."""
        join(self._host, operation.clock)

    def forget(self, keys: Set[int]) -> None:
        """Every access to these buffers has ended."""
        for key in keys:
            self._writer.pop(key, None)
            self._readers.pop(key, None)
