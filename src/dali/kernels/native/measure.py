"""Where time goes: seconds in kernels, and those that reading memory takes."""

from __future__ import annotations

from torch import Tensor

from dali.compiled import library


def read_seconds(memory: Tensor) -> float:
    """Seconds in which the kernels' threads read `memory` once: what bounds every kernel that streams weights."""
    return float(library.read_seconds(memory.data_ptr(), memory.nbytes))


def seconds() -> dict[str, float]:
    """Seconds callers have spent in kernels since the process began: experts, dense, attention, norm."""
    return dict(library.seconds())
