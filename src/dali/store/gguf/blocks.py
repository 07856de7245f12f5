"""GGUF's block types: their sizes, and the fields of their blocks (ggml-common.h).

A row of a tensor is a run of blocks; a block holds `columns` values in the bytes of its fields, whose names are ggml's. What
they stand for is in values/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dali.store.gguf.values import coded, finite, four_bits, k_quants, plain, ternary
from dali.store.gguf.values.fields import Blocks, Bytes, Floats

AT_ONCE = 2**16  # values dequantized at a time: what lies between bytes and floats stays in the cache


@dataclass(frozen=True)
class BlockType:
    """One block type: its fields, `dequantize`: blocks [n] -> float32 that reshapes to [n, columns], and whether all of a
    block's scales `are_finite`."""

    name: str
    columns: int
    fields: np.dtype[Any]
    dequantize: Callable[[Blocks], Floats]
    are_finite: Callable[[Blocks], bool] = finite.halves

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values, a multiple of the block's."""
        return columns // self.columns * self.fields.itemsize

    def blocks(self, raw: Bytes) -> Blocks:
        """[rows, row bytes] -> [rows, blocks a row], a view."""
        return raw.view(self.fields)

    def finite(self, raw: Bytes) -> bool:
        """Whether all scales in [rows, row bytes], or a float type's values, are neither NaN nor infinite."""
        return self.are_finite(self.blocks(raw))

    def values(self, raw: Bytes) -> Floats:
        """[rows, row bytes] -> float32 [rows, columns]; NaN and infinite where a scale is."""
        blocks = self.blocks(raw)
        out = np.empty((*blocks.shape, self.columns), dtype=np.float32)
        step = max(AT_ONCE // (blocks.shape[1] * self.columns), 1)
        for begin in range(0, len(blocks), step):
            part = out[begin : begin + step]
            with np.errstate(invalid="ignore", over="ignore"):
                part[...] = self.dequantize(blocks[begin : begin + step].reshape(-1)).reshape(part.shape)
        return out.reshape(len(raw), -1)


def _type(
    name: str,
    columns: int,
    dequantize: Callable[[Blocks], Floats],
    are_finite: Callable[[Blocks], bool] = finite.halves,
    **fields: Any,
) -> BlockType:
    """A type of these fields, in the file's order: so many bytes, one value of a dtype, or (dtype, count)."""
    parts = {name: ("u1", part) if isinstance(part, int) else part for name, part in fields.items()}
    layout = [(name, *part) if isinstance(part, tuple) else (name, part) for name, part in parts.items()]
    return BlockType(name, columns, np.dtype(layout), dequantize, are_finite)


_HALF, _WORD = "<f2", "<u2"
_CODES_AND_SIGNS = [("codes", "u1", 4), ("signs", "<u4")]
_FLOATS = {
    0: BlockType("F32", 1, np.dtype("<f4"), plain.floats, finite.floats),
    1: BlockType("F16", 1, np.dtype("<f2"), plain.floats, finite.floats),
    30: BlockType("BF16", 1, np.dtype("<u2"), plain.bf16, finite.bf16),
}
_PLAIN = {
    2: _type("Q4_0", 32, plain.q4_0, d=_HALF, qs=16),
    3: _type("Q4_1", 32, plain.q4_1, d=_HALF, m=_HALF, qs=16),
    6: _type("Q5_0", 32, plain.q5_0, d=_HALF, qh=4, qs=16),
    7: _type("Q5_1", 32, plain.q5_1, d=_HALF, m=_HALF, qh=4, qs=16),
    8: _type("Q8_0", 32, plain.q8_0, d=_HALF, qs=("i1", 32)),
}
_K_QUANTS = {
    10: _type("Q2_K", 256, k_quants.q2_k, scales=16, qs=64, d=_HALF, dmin=_HALF),
    11: _type("Q3_K", 256, k_quants.q3_k, hmask=32, qs=64, scales=12, d=_HALF),
    12: _type("Q4_K", 256, k_quants.q4_k, d=_HALF, dmin=_HALF, scales=12, qs=128),
    13: _type("Q5_K", 256, k_quants.q5_k, d=_HALF, dmin=_HALF, scales=12, qh=32, qs=128),
    14: _type("Q6_K", 256, k_quants.q6_k, ql=128, qh=64, scales=("i1", 16), d=_HALF),
}
_FOUR_BITS = {
    20: _type("IQ4_NL", 32, four_bits.iq4_nl, d=_HALF, qs=16),
    23: _type("IQ4_XS", 256, four_bits.iq4_xs, d=_HALF, scales_h=_WORD, scales_l=4, qs=128),
    39: _type("MXFP4", 32, four_bits.mxfp4, finite.e8m0, e="u1", qs=16),
    40: _type("NVFP4", 64, four_bits.nvfp4, finite.ue4m3, d=4, qs=32),
}
_TERNARY = {
    34: _type("TQ1_0", 256, ternary.tq1_0, qs=48, qh=4, d=_HALF),
    35: _type("TQ2_0", 256, ternary.tq2_0, qs=64, d=_HALF),
}
_CODED = {
    16: _type("IQ2_XXS", 256, coded.iq2_xxs, d=_HALF, qs=(_CODES_AND_SIGNS, 8)),
    17: _type("IQ2_XS", 256, coded.iq2_xs, d=_HALF, qs=(_WORD, 32), scales=8),
    18: _type("IQ3_XXS", 256, coded.iq3_xxs, d=_HALF, qs=64, signs=("<u4", 8)),
    19: _type("IQ1_S", 256, coded.iq1_s, d=_HALF, qs=32, qh=(_WORD, 8)),
    21: _type("IQ3_S", 256, coded.iq3_s, d=_HALF, qs=64, qh=8, signs=32, scales=4),
    22: _type("IQ2_S", 256, coded.iq2_s, d=_HALF, qs=32, signs=32, qh=8, scales=8),
    29: _type("IQ1_M", 256, coded.iq1_m, finite.iq1_m, qs=32, qh=16, scales=(_WORD, 4)),
}
BLOCK_TYPES = {**_FLOATS, **_PLAIN, **_K_QUANTS, **_FOUR_BITS, **_TERNARY, **_CODED}  # by ggml's number
UNSUPPORTED = {  # known, so that an error can name them
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
REMOVED = {  # llama.cpp has read them once
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip


def unsupported(number: int) -> tuple[str, str]:
    """What a type that BLOCK_TYPES lacks is, and the way out of it."""
    common = "Q4_K_M, Q8_0 or IQ3_XXS"
    if number in UNSUPPORTED:
        return UNSUPPORTED[number], f"Pick a file in one of the common quantizations, such as {common}."
    if number in REMOVED:
        return (
            f"{REMOVED[number]}, which llama.cpp has given up",
            f"Pick a newer file, such as one in {common}.",
        )
    return f"a type newer than this dali knows, {number}", f"Update dali, or pick a file in {common}."


SAME_VALUES = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "w8",
    "Q4_0": "w4",
    "MXFP4": "mxfp4",
    "Q4_K": "q4k",
    "Q4_1": "q4_1",
    "Q5_0": "q5_0",
    "Q5_1": "q5_1",
    "Q2_K": "q2k",
    "Q3_K": "q3k",
    "Q5_K": "q5k",
    "Q6_K": "q6k",
    "IQ4_NL": "iq4_nl",
    "IQ4_XS": "iq4_xs",
    "IQ3_S": "iq3_s",
    "IQ3_XXS": "iq3_xxs",
    "IQ2_S": "iq2_s",
    "IQ2_XS": "iq2_xs",
    "IQ2_XXS": "iq2_xxs",
    "IQ1_S": "iq1_s",
    "IQ1_M": "iq1_m",
    "NVFP4": "nvfp4",
    "TQ1_0": "tq2_0",
    "TQ2_0": "tq2_0",
}
