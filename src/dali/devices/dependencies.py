"""What must run before what, derived from the buffers that operations declare.

An operation waits for the last writer of every buffer it touches and, where it writes, for the readers
since. Waits that another wait, its own stream or the host already implies are left out, so each derived
dependency is the only thing that orders some pair of accesses: taking any one away is a race.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any

import torch

from dali import compiled

COMPUTE = "compute"  # the stream of the accelerator's kernels, the framework's own included
HOST = "host"  # the stream of the CPU's experts

Sides = tuple[torch.Tensor, torch.Tensor]  # target and source of a copy
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
        self.host: Clock = {}  # the host's waits as of then


class Operation:
    """One launch or copy. `waits`: operations of other streams, as the order of its own goes without saying.

    `seconds`: its modelled duration, alone and while the host stream computes.
    """

    clock: Any  # what has gone before by the time it ends, itself included: a Clock, or what stands for one elsewhere
    index = -1  # place in its stream
    number = -1  # place among all operations, in the order of issue
    waits: tuple[Operation, ...] = ()
    ran: bool | None = None  # None: pending; False: failed or cancelled
    handle: Any = None  # what the device waits on
    sides: Sequence[Sides] = ()  # of copies

    def __init__(
        self, stream: Stream, label: str, fn: Callable[[], object], seconds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.stream = stream
        self.label = label
        self.fn: Callable[[], object] | None = fn
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"{self.label!r} on stream {self.stream.name!r}"

    def finish(self, ran: bool) -> None:
        """Note the outcome and let go of what the operation held: tensors, and the operations before it."""
        self.ran, self.fn, self.sides, self.waits = ran, None, (), ()


_number = attrgetter("number")


class Dependencies:
    """Derives each operation's waits. Buffers are known by their storage's key.

    `drop` leaves out the n-th derived wait (from 0): mutation tests only.
    """

    def __init__(self, drop: int | None = None) -> None:
        self.derived = 0
        self.host: Clock = {}  # what the host has waited for goes before all it issues from then on
        self._drop = drop
        self._issued = 0
        self._writer: dict[int, Operation] = {}
        self._readers: dict[int, dict[int, Operation]] = {}  # since the write, each stream's latest

    def derive(self, operation: Operation, reads: Collection[int], writes: Collection[int]) -> None:
        """Number the operation, set its `waits` and remember its accesses."""
        stream, host = operation.stream, self.host
        number, clock = stream.number, stream.clock.copy()
        if stream.host is not host:
            join(clock, host)
            stream.host = host
        if found := self._before(reads, writes, clock):
            operation.waits = self._needed(found, clock)
        operation.index, operation.number = stream.issued, self._issued
        self._issued += 1
        clock[number] = stream.issued = stream.issued + 1
        operation.clock = stream.clock = clock
        readers, writers = self._readers, self._writer
        for key in reads:
            if key in readers:
                readers[key][number] = operation
            else:
                readers[key] = {number: operation}
        for key in writes:
            writers[key] = operation
            if key in readers:
                del readers[key]

    def _needed(self, found: list[Operation], clock: Clock) -> tuple[Operation, ...]:
        """Those of them that no other implies; `clock` learns of all."""
        waits = []
        # Newest first: what a newer operation waited for comes with it, never the other way round.
        for earlier in found:
            if earlier.index < clock.get(earlier.stream.number, 0):
                continue
            join(clock, earlier.clock)
            self.derived += 1
            if self.derived - 1 != self._drop:
                waits.append(earlier)
        return tuple(waits)

    def before(self, reads: Collection[int], writes: Collection[int]) -> list[Operation]:
        """What must come before such accesses and the host has not waited for, newest first."""
        return self._before(reads, writes, self.host)

    def _before(self, reads: Collection[int], writes: Collection[int], seen: Clock) -> list[Operation]:
        """Likewise, not in `seen`: the last writers; for writes, readers since."""
        found: list[Operation] = []
        writers, readers, host = self._writer, self._readers, self.host
        last = None  # slots side by side mostly share their writer
        for key in (*reads, *writes):
            writer = writers.get(key)
            if writer is None or writer is last:
                continue
            last, number = writer, writer.stream.number
            if writer.index >= seen.get(number, 0):
                found.append(writer)
            elif writer.index < host.get(number, 0):
                del writers[key]  # before all that comes
        for key in writes:
            if key in readers:
                for number, reader in readers[key].items():
                    if reader is not last and reader.index >= seen.get(number, 0):
                        found.append(reader)
                    last = reader
        return sorted(set(found), key=_number, reverse=True) if len(found) > 1 else found

    def host_waited(self, operation: Operation) -> None:
        """The host has seen this operation end."""
        if operation.index >= self.host.get(operation.stream.number, 0):
            self.host = self.host.copy()
            join(self.host, operation.clock)

    def forget(self, keys: Collection[int]) -> None:
        """Every access to these buffers has ended."""
        for key in keys:
            self._writer.pop(key, None)
            self._readers.pop(key, None)


def dependencies(drop: int | None = None) -> Dependencies:
    """For a device of its own: compiled where compiled code serves, which gives the same answers. `drop` as in Dependencies."""
    if not compiled.enabled():
        return Dependencies(drop)
    made: Dependencies = compiled.library.Dependencies(drop)
    return made
