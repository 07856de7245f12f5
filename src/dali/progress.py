"""How long work reports its progress, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Meter = Callable[[str, int], Callable[[int], None]]
"""(what, total) -> a function told of each part done, in the total's unit."""


def silent(what: str, total: int) -> Callable[[int], None]:
    """A meter that shows nothing."""
    return lambda done: None
