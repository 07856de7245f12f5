"""The compiled library (src/native), and the one switch that turns it off.

Whoever has compiled code and another way to the same answer asks here: `enabled()` where something is made, `in_use` in what runs
in every layer of every step. No torch is needed for either.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from typing import Any

from dali.errors import UsageError

VARIABLE = "DALI_KERNELS"

library: Any
try:
    library = import_module("dali.kernels._native")
except ImportError:  # built without a compiler, or a source tree nobody built
    library = None

AVAILABLE = library is not None

in_use: Any = None if os.environ.get(VARIABLE) == "torch" else library
"""The library while it serves, else None: as of the last call of `enabled`, for to read the environment takes a microsecond."""


def enabled() -> bool:
    """Whether compiled code serves: wherever it was built, unless DALI_KERNELS=torch asks for torch's and Python's.

    DALI_KERNELS may also name one of `variants()`. UsageError for any other value.
    """
    return _serves(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=1)
def _serves(wanted: str) -> bool:
    global in_use
    known = [] if library is None or wanted == "torch" else variants()
    if wanted not in ("", "torch", *known):
        raise UsageError(
            f"{VARIABLE} asks for {wanted!r}.", f"Here it may be {', '.join([*known, 'torch'])}, or unset."
        )
    in_use = None if wanted == "torch" else library
    if in_use is not None:
        use(wanted or known[0])
    return in_use is not None


def use(variant: str) -> None:
    """Compute with one of `variants()` from now on."""
    assert library.choose_variant(variant), variant


def variants() -> list[str]:
    """Instruction sets that this build and this CPU have, best first."""
    return list(library.variants())


def variant() -> str:
    """The instruction set in use."""
    return str(library.variant())
