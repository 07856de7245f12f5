"""Whether a machine was fit to be measured: what else used its processors meanwhile, and whether they kept their pace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = 0.1  # share of the processors that others may take, unsaid
STOLEN = 0.02
DRIFT = 0.1  # by which the pace may differ between beginning and end
JUMP = 1.0  # seconds by which the clocks may part
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Moment:
    """Seconds since some beginning: of all processors together those `busy`, `stolen` by other guests of the same host, and the
    `whole`; `own` of this process; and by the clock that `steps` and the one on the `wall`."""

    busy: float
    stolen: float
    whole: float
    own: float
    steps: float
    wall: float


def moment() -> Moment:
    """Now. Zeros where the system does not count."""
    busy = stolen = whole = 0.0
    with suppress(OSError, ValueError, IndexError):
        counts = [int(word) / TICKS for word in STAT.read_text().splitlines()[0].split()[1:9]]
        whole, stolen = sum(counts), counts[7]
        busy = whole - counts[3] - counts[4] - stolen  # idle, and idle while it waits for a disk
    times = os.times()
    return Moment(busy, stolen, whole, times.user + times.system, time.perf_counter(), time.time())


class Watch:
    """From when it is made to `notes`. `paces`: by name, seconds of some work that always is the same."""

    def __init__(
        self,
        paces: Mapping[str, Callable[[], float]],
        now: Callable[[], Moment] = moment,
        load: Callable[[], float] | None = None,
        cores: int | None = None,
    ) -> None:
        self._paces, self._now, self._load = paces, now, load or _load
        self._cores = cores or os.cpu_count() or 1
        self._before = self._load()
        self._begin, self._first = now(), {name: pace() for name, pace in paces.items()}

    def notes(self) -> list[str]:
        """What was wrong, a sentence each."""
        last, end = {name: pace() for name, pace in self._paces.items()}, self._now()
        begin, found = self._begin, []
        whole = end.whole - begin.whole
        others = max(end.busy - begin.busy - (end.own - begin.own), 0.0) / whole if whole > 0 else 0.0
        stolen = (end.stolen - begin.stolen) / whole if whole > 0 else 0.0
        if others > BUSY:
            found.append(
                f"Other programs took {100 * others:.0f} % of the processors meanwhile (load average before: "
                f"{self._before:.1f}, on {self._cores} cores): times may be too long."
            )
        if stolen > STOLEN:
            found.append(
                f"The host of this virtual machine took {100 * stolen:.0f} % of its processors away."
            )
        for name, seconds in last.items():
            found += _drifted(name, self._first[name], seconds)
        apart = (end.wall - begin.wall) - (end.steps - begin.steps)
        if abs(apart) > JUMP:
            found.append(
                f"The clock jumped by {apart:.0f} seconds meanwhile: it was set, or the machine slept."
            )
        return found


def _drifted(name: str, first: float, last: float) -> list[str]:
    slower = 100 * (max(first, last) / min(first, last) - 1)
    if slower <= 100 * DRIFT:
        return []
    when = "at the end than at first" if last > first else "at first than at the end"
    return [f"The {name} was {slower:.0f} % slower {when}: it is hot, saves power, or is shared with others."]


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
