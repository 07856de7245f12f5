"""Tells our own deprecation warnings from a third party's.

Python attributes a warning to the module that its stacklevel points at, mostly the caller: what transformers deprecates and dali
calls would count as dali's, and what dali deprecates as its caller's. What counts here is whose code warns. Our own are
attributed to a module "ours", which pyproject.toml's filters make errors.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
OURS = "ours"
_warn = warnings.warn


def watch() -> None:
    """From here on, for the whole process."""
    warnings.warn = warn  # type: ignore[assignment]


def warn(
    message: str | Warning,
    category: type[Warning] | None = None,
    stacklevel: int = 1,
    *more: Any,
    **named: Any,
) -> None:
    kind = type(message) if isinstance(message, Warning) else category or UserWarning
    emitter = sys._getframe(1)
    if issubclass(kind, KINDS) and is_ours(emitter):
        warnings.warn_explicit(message, kind, emitter.f_code.co_filename, emitter.f_lineno, OURS)
    else:
        _warn(message, category, max(stacklevel, 1) + 1, *more, **named)


def is_ours(frame: FrameType) -> bool:
    """dali itself, wherever it is installed, and whatever lies in the repository but in an environment."""
    if frame.f_globals.get("__name__", "").partition(".")[0] == "dali":
        return True
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts
