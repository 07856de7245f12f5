"""Whether to look ahead, found out by doing without and with it in turn.

What it saves cannot be told from what it reads: reads compete for the disk and for cores, and a wait that it shortens may be
another's. So steps are compared by the seconds they took, less the mean wait for as many experts as each wanted, as no two want
the same. They take turns, as a pool that fills, or another subject, changes both; and pairs are counted, not seconds, as one
read that takes long, for whatever reason, would outweigh all others. What has not changed its answer is asked less
and less often.
"""

from __future__ import annotations

FIRST, SHORTEST, LONGEST = 8, 64, 2048  # steps before the first comparison, and that an answer holds
PAIRS, WON = (
    8,
    6,
)  # of steps that are compared, and at least that are better with it; by chance one time in seven


class Pairs:
    """Steps without something and with it, in turn: `on` says which comes next, `won` of how many pairs the second was better."""

    def __init__(self) -> None:
        self._left, self.won = 2 * PAIRS, 0

    @property
    def on(self) -> bool:
        return self._left % 2 == 1

    def step(self, better: bool) -> bool:
        """A step is over; if it was a pair's second, whether it was `better`. Whether it was the last."""
        self.won += self.on and better
        self._left -= 1
        return self._left == 0


class Trial:
    """`on` says whether to look ahead in the step that has begun."""

    def __init__(self) -> None:
        self._pays = False
        self._pairs: Pairs | None = None  # where it is compared
        self._left, self._rest = FIRST, SHORTEST
        self._seconds, self._wanted = 0.0, 0  # as told last
        self._before = 0.0, 0  # the same of the step before the last alone

    @property
    def on(self) -> bool:
        return self._pays if self._pairs is None else self._pairs.on

    def step(self, seconds: float, waited: float, wanted: int) -> None:
        """A step begins. Of all steps before: the `seconds` they took, those in which they `waited` for the disk, and the experts
        that had to be read for them, ahead or not."""
        last = seconds - self._seconds, wanted - self._wanted
        without, self._before = self._before, last
        self._seconds, self._wanted = seconds, wanted
        if self._pairs is None:
            self._left -= 1
            if self._left == 0:
                self._pairs = Pairs()
            return
        mean = waited / wanted if wanted else 0.0
        if not self._pairs.step(last[0] - mean * last[1] < without[0] - mean * without[1]):
            return
        pays = self._pairs.won >= WON
        self._rest = min(2 * self._rest, LONGEST) if pays == self._pays else SHORTEST
        self._pays, self._left, self._pairs = pays, self._rest, None
