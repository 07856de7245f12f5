"""Which of two ways of reading experts from disk is faster, found out by steps.

The usual way was measured to be the faster one, on another day. While decoding, steps that read the usual way and steps that read
the other way take turns, as `trial` has it, and pairs are counted; a comparison ends as soon as the pairs that are left cannot
change what it says. The way that is taken changes where the other one wins most pairs.

After each comparison nothing is compared for a rest. It doubles each time, so that nothing can swing however steps are timed; and
it is so long that the next comparison, if it finds what this one found, costs no more than a fraction of the time since.
"""

from __future__ import annotations

import math
from statistics import median

from dali.policies.trial import FIRST, LONGEST, PAIRS, SHORTEST, WON, Pairs

LOST = PAIRS - WON + 1  # pairs after which the other way cannot win: steps that a comparison in vain takes it
SHARE = 0.005  # of the time, that such steps may have cost


class Ways:
    """`other` says whether the decoding step that begins reads the other way. It knows no clock."""

    def __init__(self) -> None:
        self.reverted = False  # whether the other way is taken, but for comparisons
        self.ratios = math.nan, math.nan  # of the last comparison: a step's time over the mean, by either way
        self._pairs: Pairs | None = None
        self._seen: tuple[list[float], list[float]] = [], []  # by the way that is taken, and by its other
        self._left, self._rest = FIRST, SHORTEST
        self._steps = self._wanted = 0  # of all steps so far, as their
        self._computed = self._waited = 0.0  # seconds are

    @property
    def compares(self) -> bool:
        return self._pairs is not None

    @property
    def other(self) -> bool:
        return self.reverted != (self._pairs is not None and self._pairs.on)

    @property
    def mean(self) -> float:
        """Seconds of a step so far, by whichever way it read."""
        return (self._computed + self._waited) / self._steps

    def step(self, seconds: float, waited: float, wanted: int) -> bool:
        """A decoding step has taken so many `seconds`, in `waited` of which it waited for the disk, and `wanted` experts had to
        be read for it; whether `reverted` has changed. Steps are compared by what they took over what one that wants so many
        takes on average, as no two want the same. One that wanted none tells nothing, and what is no time is ignored."""
        if not (0 < seconds < math.inf and 0 <= waited <= seconds) or wanted < 1:
            return False
        self._steps += 1
        self._wanted += wanted
        self._computed += seconds - waited
        self._waited += waited
        ratio = seconds / (self._computed / self._steps + self._waited / self._wanted * wanted)
        if self._pairs is not None:
            return self._compare(self._pairs, ratio)
        self._left -= 1
        if self._left <= 0:
            self._pairs, self._seen = Pairs(), ([], [])
        return False

    def _compare(self, pairs: Pairs, ratio: float) -> bool:
        taken, other = self._seen
        (other if pairs.on else taken).append(ratio)
        pairs.step(ratio < taken[-1])
        changed = pairs.won == WON
        if not changed and len(other) - pairs.won < LOST:
            return False
        mine, others = map(median, self._seen)
        self.ratios = (others, mine) if self.reverted else (mine, others)
        self._pairs = None
        self._rest = min(2 * self._rest, LONGEST)
        dearer = max(mine, others) / min(mine, others) - 1
        self._left = max(self._rest, math.ceil(min(LOST * dearer / SHARE, 2.0**60)))
        self.reverted ^= changed
        return changed
