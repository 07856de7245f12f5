"""Reading experts of later layers from disk before their routing is known, and whether that pays.

Which ones is a prefetch policy's to say (policies.prefetch): of the experts that it foresees those that are not in RAM, the
nearest layer's first, and no more than the disk has time for: one that is half done when its layer begins is soon enough. None
are read while most of those foreseen of late were not needed. What reading ahead brings is judged here, as a guard wants it, in
seconds: a layer that finds its experts waits less; one that finds the disk still busy, or an expert gone that made room, waits
more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

from dali.hardware.cost import ExpertCosts
from dali.policies.guard import Guard
from dali.policies.places import Expert
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import Forecast, PrefetchPolicy

LIKELY = 0.3  # of the absent experts foreseen of late are to have been needed, at least
MEMORY = 0.98  # a layer, of what is known of that
WINDOW = 8  # steps of a trial: reading in vain costs more than copying in vain, so a trial is short


def waiting(there: float, absent: Sequence[float], read: float) -> float:
    """Seconds of a layer's experts: those that are there compute for `there` seconds, and one more, for its own seconds out of
    `absent`, can begin after each further `read` seconds."""
    end = there
    for place, seconds in enumerate(absent, 1):
        end = max(end, place * read) + seconds
    return end


class ReadAhead:
    """`policy` says what to read, `guard` whether to; `read`: seconds of one read."""

    def __init__(self, policy: PrefetchPolicy, read: float) -> None:
        self.policy = policy
        self.guard = Guard(window=WINDOW)
        self._read = read
        self._costs = ExpertCosts([], [], read, read, 0.0)
        self._idle: float | None = None  # the mean
        self._foreseen: dict[
            int, set[int]
        ] = {}  # the absent experts that each layer was last foreseen to need
        self._right, self._told = 1.0, 2.0  # of those of late, how many were needed, and how many there were
        self._displaced: set[Expert] = set()  # gone for an expert read ahead, and not read again
        self._cost = self._benefit = 0.0

    def choose(self, forecasts: Iterable[tuple[int, Sequence[float], Set[int]]], idle: float) -> list[Expert]:
        """What to read, in this order. `forecasts`: (layer, expected workload, its experts that need no reading), the nearest
        layer first; `idle`: seconds the disk has before the next layer's experts begin, and after that what it had of late."""
        mean = self._idle = idle if self._idle is None else 0.9 * self._idle + 0.1 * idle
        told, seconds = [], idle
        for layer, expected, there in forecasts:
            absent = {expert for expert, tokens in enumerate(expected) if tokens and expert not in there}
            self._foreseen.setdefault(layer, absent)  # the first, which is what is read
            told.append(Forecast(layer, expected, ResidencyView(there, {}, len(expected)), seconds))
            seconds += mean
        return self.policy.plan(told, self._costs) if self._right >= LIKELY * self._told else []

    def begin(self, expert: Expert, gone: Expert | None) -> None:
        """A read ahead takes the place of `gone`."""
        self._displaced.discard(expert)
        if gone is not None:
            self._displaced.add(gone)

    def settle(
        self,
        layer: int,
        seconds: float,
        there: float,
        ahead: Sequence[float],
        missed: Iterable[tuple[int, float]],
        predicting: float,
        needed: Collection[int],
    ) -> None:
        """Judge a layer that took `seconds`: of its experts, those that were in RAM compute for `there` seconds, those that were
        read ahead for so many each, and of `missed` (expert, seconds) each had to be read. `predicting`: seconds of what was
        predicted in it; `needed`: all experts that it needed in RAM."""
        foreseen = self._foreseen.pop(layer, set())
        self._right = MEMORY * self._right + len(foreseen.intersection(needed))
        self._told = MEMORY * self._told + len(foreseen)
        gone, others = [], []
        for expert, computing in missed:
            if (layer, expert) in self._displaced:
                self._displaced.remove((layer, expert))
                gone.append(computing)
            else:
                others.append(computing)
        found = there + sum(ahead)
        with_all = waiting(found, [*others, *gone], self._read)
        self._benefit += waiting(there, [*others, *gone, *ahead], self._read) - with_all
        self._cost += predicting + max(seconds - waiting(found + sum(gone), others, self._read), 0.0)

    def step(self) -> None:
        """A forward step is over."""
        self.guard.note(self._cost, self._benefit)
        self._cost = self._benefit = 0.0
        if not self.guard.on:
            self._displaced.clear()
