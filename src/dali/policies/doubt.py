"""Whether the CPU alone is faster than with an accelerator, found out by steps.

Plans go by modelled times, and where decoding steps take as long as they are modelled to take with all experts on the CPU,
or nearly, one of both is wrong. Only then are they compared: steps by the plan and steps with all experts on the CPU take turns,
as `trial` has it, and pairs are counted. The way that is taken changes where the other one wins most pairs. What the CPU was seen
to take is what plans are held against from then on, so a model that is wrong costs one comparison, and one that is right none.

After each comparison nothing is compared for a rest, which doubles each time. So however steps are timed, nothing can swing: of n
steps there are log2(n / SHORTEST) comparisons at most, until the longest rest, and one in that many from there on. While the CPU
has all experts plans are not seen, so they are asked again after each rest.
"""

from __future__ import annotations

import math
from statistics import median

from dali.policies.trial import LONGEST, SHORTEST, WON, Pairs

WINDOW = 32  # steps that are looked at together; most of them have to be near
NEAR = 0.95  # of what all experts on the CPU take: a plan that saves less is as good as none


class Doubt:
    """`on_cpu` says where the experts of the decoding step that begins are to be computed. It knows no clock."""

    def __init__(self) -> None:
        self.reverted = False  # whether the CPU has all experts, but for comparisons
        self.ratios = (
            math.nan,
            math.nan,
        )  # of the last comparison: by the plan, and on the CPU, as `step` has them
        self._pairs: Pairs | None = None
        self._seen: tuple[list[float], list[float]] = (
            [],
            [],
        )  # of the comparison under way: the usual way, and the other
        self._left = self._rest = SHORTEST
        self._bar = 1.0  # what all experts on the CPU take over what they are modelled to take
        self._looked = self._near = 0

    @property
    def on_cpu(self) -> bool:
        return self.reverted != (self._pairs is not None and self._pairs.on)

    def step(self, seconds: float, modelled: float) -> bool:
        """A decoding step has taken so many `seconds`, and is `modelled` to take so many with all experts on the CPU; whether
        `reverted` has changed. What is not positive and finite is ignored. Steps are compared by the ratio of both, as no two
        are alike."""
        if not (0 < seconds < math.inf and 0 < modelled < math.inf):
            return False
        ratio = seconds / modelled
        if self._pairs is not None:
            return self._compare(self._pairs, ratio)
        self._left = max(self._left - 1, 0)
        if self._left == 0 and (self.reverted or self._doubtful(ratio)):
            self._pairs, self._seen = Pairs(), ([], [])
        return False

    def _doubtful(self, ratio: float) -> bool:
        self._looked += 1
        self._near += ratio > NEAR * self._bar
        if self._looked < WINDOW:
            return False
        most = 2 * self._near > self._looked
        self._looked = self._near = 0
        return most

    def _compare(self, pairs: Pairs, ratio: float) -> bool:
        usual, other = self._seen
        (other if pairs.on else usual).append(ratio)
        if not pairs.step(ratio < usual[-1]):
            return False
        plan, cpu = map(median, (other, usual) if self.reverted else (usual, other))
        self.ratios, self._bar = (plan, cpu), cpu
        self._pairs = None
        self._rest = min(2 * self._rest, LONGEST)
        self._left = self._rest
        changed = pairs.won >= WON
        self.reverted ^= changed
        return changed
