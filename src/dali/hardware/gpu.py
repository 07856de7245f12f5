"""Whether there can be a GPU for torch to use, told without importing torch, which takes seconds."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from pathlib import Path

from dali.errors import DaliError, parameter

DRIVERS = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}


def check_gpu(device: str) -> None:
    """DaliError where `device`, "cuda" or "cuda:N", cannot be: torch was built without it, or it has no driver. Whether it really
    is there only torch can tell."""
    built = _builds()
    if built is not None and not built & {"cuda", "hip"}:
        what = "torch was built without CUDA here"
    elif (
        built is None or "hip" not in built
    ) and not _driver():  # HIP is AMD's, whose driver has no one name
        what = "there is no CUDA driver here"
    else:
        return
    raise DaliError(
        f"Device {device!r} was asked for, but {what}.",
        f"Install a CUDA build of torch and a driver, or use {parameter('device')} cpu.",
    )


def _builds() -> set[str] | None:
    """What of "cuda" and "hip" the installed torch was built for; None where its files do not say."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    said = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(\S+)", text, re.MULTILINE))
    return {name for name, value in said.items() if value != "None"} if said else None


def _driver() -> bool:
    """Whether the library that every CUDA program needs can be loaded."""
    try:
        ctypes.CDLL(DRIVERS.get(sys.platform, "libcuda.so.1"))
    except OSError:
        return False
    return True
