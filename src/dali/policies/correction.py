"""What a figure is worth now: the ratio of what was observed to what a profile predicts, applied to plans with hysteresis.

A profile was measured on a quiet machine; heat, other programs and other settings change it. Each observation moves an average of
the ratio's logarithm a little. Plans keep the ratio they go by as long as the average stays within a band around it. When it
leaves, plans go by the average, and nothing changes again for a rest, which doubles with each change. So however observations are
timed, plans cannot swing: n observations change them log2(n / rest) times at most, until the longest rest, and once in that many
from there on.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dali.hardware.cost import ExpertCosts


class Correction:
    """Of one figure; `applied` is the factor that its predicted times are to be multiplied by. It knows no clock: `rest` and
    `longest` count observations."""

    def __init__(
        self,
        band: float = 1.25,
        weight: float = 1 / 64,
        rest: int = 512,
        longest: int = 2**18,
        most: float = 8.0,
    ) -> None:
        """`band`: the ratio of the average to `applied` that changes it; `weight`: of an observation in the average; `most`: what
        an observation counts for at most, and the reciprocal at least."""
        self.applied = 1.0
        self._band, self._weight, self._most = math.log(band), weight, math.log(most)
        self._rest, self._longest = rest, longest
        self._left = rest
        self._mean = 0.0

    def note(self, predicted: float, observed: float) -> bool:
        """One observation, in the same unit as predicted without any correction; whether `applied` has changed. What is not
        positive and finite is ignored."""
        if not (0 < predicted < math.inf and 0 < observed < math.inf):
            return False
        ratio = min(max(math.log(observed) - math.log(predicted), -self._most), self._most)
        self._mean += self._weight * (ratio - self._mean)
        self._left -= 1
        if self._left > 0 or abs(self._mean - math.log(self.applied)) <= self._band:
            return False
        self.applied = math.exp(self._mean)
        self._rest = min(2 * self._rest, self._longest)
        self._left = self._rest
        return True


class CorrectedCosts:
    """What plans go by: a profile's costs, the CPU's experts and the link's copies each multiplied by their correction."""

    def __init__(self, given: ExpertCosts) -> None:
        self.given = self.now = given
        self.cpu, self.link = Correction(), Correction()

    def note_cpu(self, predicted: float, observed: float) -> bool:
        """Seconds of experts that the CPU has computed, by what was given and as observed; whether `now` has changed."""
        return self._apply(self.cpu.note(predicted, observed))

    def note_copies(self, copies: int, seconds: float) -> bool:
        """Experts that were copied, and the seconds that took; whether `now` has changed. Between what the link takes alone and
        what it takes beside a CPU that computes they are as predicted."""
        alone, contended = copies * self.given.link, copies * self.given.link_contended
        return self._apply(self.link.note(min(max(seconds, alone), contended), seconds))

    def _apply(self, changed: bool) -> bool:
        if changed:
            given, cpu, link = self.given, self.cpu.applied, self.link.applied
            self.now = replace(
                given,
                cpu=[cpu * seconds for seconds in given.cpu],
                link=link * given.link,
                link_contended=link * given.link_contended,
            )
        return changed
