"""Compiled planning. policies/assign/two_lane.py, which calls it, says what it does; no torch is needed for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

search_two_lane: Any
try:
    search_two_lane = import_module("dali.kernels._native").search_two_lane
except ImportError:  # nothing was compiled
    search_two_lane = None
