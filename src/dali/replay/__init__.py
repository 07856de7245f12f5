"""Replaying recorded routing: the live runs' policies on a modelled clock, computing nothing, beside provable bounds.

`dali.replay.compare(traces, policies, ...)` is the way in from Python; torch is not imported for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali.replay.comparison import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for, as whoever reads a trace alone does not need it."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dali.replay import comparison

    return comparison.compare
