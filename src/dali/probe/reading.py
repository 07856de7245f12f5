"""One figure from several readings: their median, and how far they are spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from dali.errors import DaliError
from dali.hardware.profile import APART

LEAST, MOST = 3, 15  # readings of a figure
PATIENCE, LONGEST = 60, 3.0  # readings, and seconds, of one whose readings contradict each other
STEADY = 0.04  # spread with which no more are taken
SHORTEST = 6e-3  # seconds of one
SECONDS = 0.12  # that readings of one figure may take, once there are enough of them
AGAIN = "Close other programs, and run `dali bench hw` again."

Clock = Callable[[], float]


@dataclass(frozen=True)
class Reading:
    """`spread`: half of the readings lie so near the median, as a share of it."""

    value: float
    spread: float
    count: int

    def under(self, amount: float) -> Reading:
        """`amount` over the reading: a rate, of seconds."""
        return Reading(amount / self.value, self.spread, self.count)


def many(seconds: Callable[[], float], share: float = 1.0) -> Callable[[], float]:
    """The median of so many calls that a reading takes SHORTEST: the system gives a processor to others for milliseconds, by
    which a call that takes far less is hit hard or not at all. `share`: what a call takes over what `seconds` says."""

    def middle() -> float:
        found = [seconds()]
        while 0 < sum(found) * share < SHORTEST and len(found) < 100:
            found.append(seconds())
        return statistics.median(found)

    return middle


def repeat(what: str, measure: Callable[[], float], clock: Clock, seconds: float = SECONDS) -> Reading:
    """Readings until they are steady, or `seconds` by the clock are over and they agree. DaliError: no reading is a positive
    number, or their middle half lies ten times apart after all."""
    found: list[float] = []
    begin, asked = clock(), 0
    while len(found) < LEAST or (asked < MOST and clock() - begin < seconds) or _apart(found) > APART:
        if asked >= PATIENCE or (asked >= MOST and clock() - begin > LONGEST):
            break
        asked += 1
        value = measure()
        if math.isfinite(value) and value > 0:
            found.append(value)
        if len(found) >= LEAST and _spread(found) <= STEADY:
            break
    if len(found) < LEAST:
        raise DaliError(
            f"{len(found)} of {asked} readings of {what} are times at all: the clock jumps.", AGAIN
        )
    return reading_of(what, found)


def reading_of(what: str, found: list[float]) -> Reading:
    """Of readings that were taken. DaliError as for `repeat`."""
    if _apart(found) > APART:
        raise DaliError(
            f"Readings of {what} are {_apart(found):.0f} times apart: something else uses this machine.",
            AGAIN,
        )
    return Reading(statistics.median(found), _spread(found), len(found))


def check_order(what: str, found: Mapping[int, Reading]) -> None:
    """DaliError where more tokens take ten times less than fewer."""
    for (few, before), (more, after) in pairwise(found.items()):
        if after.value * APART < before.value:
            raise DaliError(
                f"{what}: {more} tokens took {before.value / after.value:.0f} times less than {few}, so something else uses this "
                "machine.",
                AGAIN,
            )


def _apart(found: list[float]) -> float:
    """The largest over the smallest of the middle half."""
    quarter = len(found) // 4
    middle = sorted(found)[quarter : len(found) - quarter]
    return max(middle) / min(middle)


def _spread(found: list[float]) -> float:
    median = statistics.median(found)
    return statistics.median(abs(value - median) for value in found) / median
