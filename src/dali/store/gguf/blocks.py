"""GGUF's block types: their sizes, and the values their bytes stand for (ggml-common.h, ggml-quants.c).

A row of a tensor is a run of blocks; a block holds `columns` values in `bytes` bytes. Field names are ggml's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Blocks = NDArray[Any]  # structured, one element a block

MXFP4_VALUES = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), dtype=np.int8)  # doubled
AT_ONCE = 2**16  # values dequantized at a time: what lies between bytes and floats stays in the cache


@dataclass(frozen=True)
class BlockType:
    """One block type: its fields, and `dequantize`: blocks [n] -> float32 that reshapes to [n, columns]."""

    name: str
    columns: int
    fields: np.dtype[Any]
    dequantize: Callable[[Blocks], Floats]

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values, a multiple of the block's."""
        return columns // self.columns * self.fields.itemsize

    def blocks(self, raw: Bytes) -> Blocks:
        """[rows, row bytes] -> [rows, blocks a row], a view."""
        return raw.view(self.fields)

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


def six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes of Q4_K and Q5_K, [..., 12] -> scales and minima, [..., 8] each."""
    low, high, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=-1)
    return scales, minima


def halves(qs: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=-1)


def fields(packed: Bytes, bits: int) -> Bytes:
    """[..., n] bytes -> [..., 8 / bits, n]: the fields of `bits` bits of each byte, lowest first."""
    shifts: Any = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    each: Bytes = (packed[..., None, :] >> shifts) & np.uint8(2**bits - 1)
    return each


def _times(values: Any, scale: Any) -> Floats:
    """Integers [..., n] times their scale [...]."""
    out: Floats = values.astype(np.float32)
    out *= scale.astype(np.float32)[..., None]
    return out


def _fifth_bit(qh: Bytes) -> Bytes:
    """[n, 4] bytes -> [n, 32]: each bit as 16."""
    return np.unpackbits(qh, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(b: Blocks) -> Floats:
    return _times(halves(b["qs"]).view(np.int8) - np.int8(8), b["d"])


def _q4_1(b: Blocks) -> Floats:
    return _times(halves(b["qs"]), b["d"]) + b["m"].astype(np.float32)[:, None]


def _q5_0(b: Blocks) -> Floats:
    return _times((halves(b["qs"]) | _fifth_bit(b["qh"])).view(np.int8) - np.int8(16), b["d"])


def _q5_1(b: Blocks) -> Floats:
    return _times(halves(b["qs"]) | _fifth_bit(b["qh"]), b["d"]) + b["m"].astype(np.float32)[:, None]


def _k_quants(b: Blocks, quants: Bytes) -> Floats:
    """Q4_K and Q5_K: quants [n, 8, 32] -> quant * (d * scale) - dmin * minimum."""
    scales, minima = six_bit_scales(b["scales"])
    d, dmin = (b[name].astype(np.float32)[:, None] for name in ("d", "dmin"))
    return _times(quants, d * scales) - (dmin * minima)[..., None]


def _nibbles_by_64(qs: Bytes) -> Bytes:
    """[n, 128] -> [n, 8, 32]: 32 bytes hold two groups, the first in low nibbles."""
    return halves(qs.reshape(-1, 4, 32)).reshape(-1, 8, 32)


def _q5_k(b: Blocks) -> Floats:
    fifth: Any = fields(b["qh"], 1)
    quants: Bytes = _nibbles_by_64(b["qs"]) | (fifth << 4)
    return _k_quants(b, quants)


def _q6_k(b: Blocks) -> Floats:
    low = fields(b["ql"].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = fields(b["qh"].reshape(-1, 2, 32), 2)
    quants = (low | (high << 4)).view(np.int8) - np.int8(32)
    return _times(quants.reshape(-1, 16, 16), b["d"].astype(np.float32)[:, None] * b["scales"])


def _mxfp4(b: Blocks) -> Floats:
    power = np.ldexp(np.float32(1), b["e"].astype(np.int32) - 128)  # half of 2^(e - 127)
    return _times(MXFP4_VALUES[halves(b["qs"])], power)


def _bf16(b: Blocks) -> Floats:
    return (b.astype(np.uint32) << 16).view(np.float32)


def _type(name: str, columns: int, *fields: Any, dequantize: Callable[[Blocks], Floats]) -> BlockType:
    return BlockType(name, columns, np.dtype(list(fields)), dequantize)


_D, _M, _QS = ("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)
_SUPER = (("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12))

BLOCK_TYPES = {  # by ggml's number
    0: BlockType("F32", 1, np.dtype("<f4"), lambda b: b),
    1: BlockType("F16", 1, np.dtype("<f2"), lambda b: b.astype(np.float32)),
    30: BlockType("BF16", 1, np.dtype("<u2"), _bf16),
    2: _type("Q4_0", 32, _D, _QS, dequantize=_q4_0),
    3: _type("Q4_1", 32, _D, _M, _QS, dequantize=_q4_1),
    6: _type("Q5_0", 32, _D, ("qh", "u1", 4), _QS, dequantize=_q5_0),
    7: _type("Q5_1", 32, _D, _M, ("qh", "u1", 4), _QS, dequantize=_q5_1),
    8: _type("Q8_0", 32, _D, ("qs", "i1", 32), dequantize=lambda b: _times(b["qs"], b["d"])),
    12: _type(
        "Q4_K", 256, *_SUPER, ("qs", "u1", 128), dequantize=lambda b: _k_quants(b, _nibbles_by_64(b["qs"]))
    ),
    13: _type("Q5_K", 256, *_SUPER, ("qh", "u1", 32), ("qs", "u1", 128), dequantize=_q5_k),
    14: _type(
        "Q6_K", 256, ("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2"), dequantize=_q6_k
    ),
    39: _type("MXFP4", 32, ("e", "u1"), _QS, dequantize=_mxfp4),
}
UNSUPPORTED = {  # known, so that an error can name them
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
