"""The compiled library as torch meets it, and the threads it computes on."""

from __future__ import annotations

from typing import Any

import torch

from dali.compiled import library
from dali.kernels.formats import FORMATS
from dali.kernels.grids import table_bytes

DTYPES: dict[torch.dtype, Any] = (
    {}
    if library is None
    else {
        torch.float32: library.Dtype.f32,
        torch.bfloat16: library.Dtype.bf16,
        torch.float16: library.Dtype.f16,
    }
)

if library is not None:
    for format in FORMATS.values():
        if format.coded:
            library.set_grid(format.name, table_bytes(format.grid))


def set_threads(threads: int, pinned: bool = False) -> None:
    """Compute with `threads` threads, the caller's among them; `pinned` binds the others to cores of their own."""
    library.set_threads(threads, pinned)


def threads() -> int:
    """Threads that compute, the caller's among them."""
    return int(library.threads())
