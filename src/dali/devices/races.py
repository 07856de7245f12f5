"""Vector clocks, to find races: two accesses to one buffer, one of them a write, that nothing orders.

Sees what the device enforces (stream order, waits, the host's own waits), not why: it checks the derivation
in dependencies.py and shares none of its bookkeeping. As it compares orders and not times, every schedule
shows a race. Undeclared accesses are invisible to it; poisoned buffers show those.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from dali.devices.base import MisuseError
from dali.devices.dependencies import Clock, Operation, join


class RaceError(MisuseError):
    """Two operations touch one buffer, at least one writes it, and either may come first."""


@dataclass(frozen=True)
class _Access:
    stream: int
    count: int  # how many operations of its stream had been issued, itself included
    text: str
    write: bool


class RaceDetector:
    """Vector clocks over the calls a device makes."""

    def __init__(self) -> None:
        self._streams: dict[int, Clock] = {}
        self._host: Clock = {}
        self._ends: WeakKeyDictionary[Operation, Clock] = WeakKeyDictionary()
        self._accesses: dict[int, list[_Access]] = {}  # since and with the last write

    def launched(self, operation: Operation, reads: Set[int], writes: Set[int]) -> None:
        """Account for an operation that starts after `operation.waits`. Raises RaceError."""
        number = operation.stream.number
        clock = self._streams.setdefault(number, {})
        join(clock, self._host)
        for earlier in operation.waits:
            join(clock, self._ends.get(earlier, {}))
        count = clock[number] = clock.get(number, 0) + 1
        self._ends[operation] = dict(clock)
        race = None
        for key in sorted(reads | writes):
            access = _Access(number, count, repr(operation), key in writes)
            known = self._accesses.setdefault(key, [])
            for other in known:
                ordered = other.count <= clock.get(other.stream, 0)
                if not ordered and (access.write or other.write) and race is None:
                    race = RaceError(f"Race: nothing orders {access.text} and {other.text} on one buffer.")
            kept = [o for o in known if not access.write and (o.write or o.stream != number)]
            self._accesses[key] = [*kept, access]
        if race is not None:
            raise race

    def forget(self, keys: Set[int]) -> None:
        """Drop what is known of these buffers and went before all that is issued from now on."""
        for key in keys & self._accesses.keys():
            self._accesses[key] = [o for o in self._accesses[key] if o.count > self._host.get(o.stream, 0)]
            if not self._accesses[key]:
                del self._accesses[key]

    def host_waited(self, operation: Operation) -> None:
        """The host saw this operation end: it goes before everything issued from now on."""
        join(self._host, self._ends.get(operation, {}))
