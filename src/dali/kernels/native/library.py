"""The compiled library and its settings: which instruction set computes, on how many threads."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

from dali.errors import UsageError

library: Any
try:
    library = import_module("dali.kernels._native")
except ImportError:  # built without a compiler, or a source tree nobody built
    library = None

AVAILABLE = library is not None
VARIABLE = "DALI_KERNELS"

DTYPES: dict[torch.dtype, Any] = (
    {}
    if library is None
    else {
        torch.float32: library.Dtype.f32,
        torch.bfloat16: library.Dtype.bf16,
        torch.float16: library.Dtype.f16,
    }
)


def enabled() -> bool:
    """Whether the compiled kernels serve: wherever they were built, unless DALI_KERNELS=torch asks for torch's.

    DALI_KERNELS may also name one of `variants()`. UsageError for any other value.
    """
    return _serves(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=1)
def _serves(wanted: str) -> bool:
    if wanted == "torch" or (not wanted and library is None):
        return False
    known = [] if library is None else variants()
    if wanted and wanted not in known:
        raise UsageError(
            f"{VARIABLE} asks for {wanted!r}.", f"Here it may be {', '.join([*known, 'torch'])}, or unset."
        )
    use(wanted or known[0])
    return True


def use(variant: str) -> None:
    """Compute with one of `variants()` from now on."""
    assert library.choose_variant(variant), variant


def variants() -> list[str]:
    """Instruction sets that this build and this CPU have, best first."""
    return list(library.variants())


def variant() -> str:
    """The instruction set in use."""
    return str(library.variant())


def set_threads(threads: int, pinned: bool = False) -> None:
    """Compute with `threads` threads, the caller's among them; `pinned` binds the others to cores of their own."""
    library.set_threads(threads, pinned)


def threads() -> int:
    """Threads that compute, the caller's among them."""
    return int(library.threads())
