"""The grids of coded formats as the GPU's kernels look them up (source/coded.cuh): a header made from their one table."""

from __future__ import annotations

from functools import cache

import numpy as np

from dali.kernels.formats import FORMATS
from dali.kernels.grids import table

NAME = "grids.cuh"


@cache
def header() -> bytes:
    """A word a code: four weights, or the places of eight among the grid's values, four bits each. Zero points are in the values;
    IQ1's are in eighths, first moved up by one, then down."""
    zeros = {format.grid: format.zero for format in FORMATS.values() if format.coded}
    lines = ["#pragma once", '#include "warp.cuh"', "namespace dali::gpu {"]
    for name, zero in zeros.items():
        grid = table(name)
        values, places = np.unique(grid, return_inverse=True)
        wide = grid.shape[1] == 8
        words = _packed(places.reshape(grid.shape), 4) if wide else _packed(grid.astype(np.int64) + zero, 8)
        lines.append(_function(f"of_{name}", words))
        if wide:
            moves = (1, -1) if name == "iq1" else (0,)
            weights = np.array([zero + values * (8 if name == "iq1" else 1) + move for move in moves])
            lines.append(_function(f"values_of_{name}", _packed(weights, 8)))
    return "\n".join([*lines, "}", ""]).encode()


def _packed(numbers: np.ndarray, bits: int) -> list[int]:
    """Each row's numbers, `bits` each, the first lowest."""
    shifts = bits * np.arange(numbers.shape[1], dtype=np.int64)
    return [int(word) for word in (numbers.astype(np.int64) << shifts).sum(axis=1)]


def _function(name: str, words: list[int]) -> str:
    """One that looks a word up: what a kernel does not call is not in it."""
    listed = ",".join(f"{word}u" for word in words)
    return f"""DALI_DEVICE uint32_t {name}(uint32_t at) {{
    static constexpr uint32_t words[{len(words)}] = {{{listed}}};
    return words[at];
}}"""
