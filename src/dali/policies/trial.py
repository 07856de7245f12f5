"""Whether to look ahead, found out by doing without it now and then.

What it saves cannot be told from what it reads: reads compete for the disk, and a wait that it shortens may be another's. So
steps with it and without it are compared by the seconds they were stalled. What has not changed its answer is asked less and
less often.
"""

from __future__ import annotations

WINDOW, SHORTEST, LONGEST = 16, 64, 2048  # steps that are compared, and that the answer holds
GAIN = 0.95  # the share of the stalls without it that it may leave


class Trial:
    """`on` says whether to look ahead in the step that has begun."""

    def __init__(self) -> None:
        self._phase, self._pays = "resting", False
        self._left, self._rest = WINDOW, SHORTEST
        self._began = self._without = 0.0

    @property
    def on(self) -> bool:
        return self._phase == "with" or (self._phase == "resting" and self._pays)

    def step(self, stalled: float) -> None:
        """A step begins. `stalled`: seconds that all steps before have waited for the disk."""
        self._left -= 1
        if self._left > 0:
            return
        since, self._began, self._left = stalled - self._began, stalled, WINDOW
        if self._phase == "resting":
            self._phase = "without"
        elif self._phase == "without":
            self._without, self._phase = since, "with"
        else:
            pays = since < GAIN * self._without
            self._rest = min(2 * self._rest, LONGEST) if pays == self._pays else SHORTEST
            self._pays, self._left, self._phase = pays, self._rest, "resting"
