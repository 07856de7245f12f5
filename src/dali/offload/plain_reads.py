"""Reading experts through the page cache, where it was measured to be faster: held to what decoding steps take."""

from __future__ import annotations

from collections.abc import Callable

from dali.policies.ways import Ways
from dali.store.disk_pool import DiskPool


class PlainReads:
    """Tells a `Ways` what steps took, and a pool how to read. The budget keeps the room that plain reads under way take, so that
    either way may be taken at any step."""

    def __init__(self, pool: DiskPool, tell: Callable[[str], None]) -> None:
        """`pool`: has both ways, and reads plainly; `tell` is told of what changes."""
        self._ways, self._pool, self._tell = Ways(), pool, tell
        self._before = pool.decoded()

    def end_step(self) -> None:
        """A step is over, whatever it was."""
        now, before = self._pool.decoded(), self._before
        self._before = now
        if now is None or before is None:
            return
        ways = self._ways
        changed = ways.step(now[0] - before[0], now[1] - before[1], now[2] - before[2])
        self._pool.read_past(ways.reverted, ways.other, ways.compares)
        if changed:
            self._tell(self._said())

    def _said(self) -> str:
        plain, past = (1000 * self._ways.mean * ratio for ratio in self._ways.ratios)
        now = "past it" if self._ways.reverted else "through it again"
        return (
            f"Decoding steps take {plain:.3g} ms with experts read through the page cache and {past:.3g} ms with experts "
            f"read past it (measured, taking turns): from here on they are read {now}."
        )
