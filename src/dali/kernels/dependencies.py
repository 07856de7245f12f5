"""Deriving dependencies in compiled code. devices/dependencies.py says what is derived and why, and serves where nothing was
compiled; both give the same answers."""

from __future__ import annotations

from importlib import import_module

from dali.devices.dependencies import Dependencies
from dali.kernels import native


def dependencies(drop: int | None = None) -> Dependencies:
    """For a device of its own; `drop` as in Dependencies."""
    if not native.AVAILABLE:
        return Dependencies(drop)
    made: Dependencies = import_module("dali.kernels._native").Dependencies(drop)
    return made
