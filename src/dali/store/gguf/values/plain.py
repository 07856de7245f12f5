"""Values of blocks of 32 that share one scale, and perhaps a minimum; and of floats."""

from __future__ import annotations

import numpy as np

from dali.store.gguf.values.fields import Blocks, Bytes, Floats, halves, single, times


def floats(b: Blocks) -> Floats:
    out: Floats = b.astype(np.float32, copy=False)
    return out


def bf16(b: Blocks) -> Floats:
    return (b.astype(np.uint32) << 16).view(np.float32)


def q4_0(b: Blocks) -> Floats:
    return times(halves(b["qs"]).view(np.int8) - np.int8(8), b["d"])


def q4_1(b: Blocks) -> Floats:
    return times(halves(b["qs"]), b["d"]) + single(b, "m")


def q5_0(b: Blocks) -> Floats:
    return times(five_bits(b).view(np.int8) - np.int8(16), b["d"])


def q5_1(b: Blocks) -> Floats:
    return times(five_bits(b), b["d"]) + single(b, "m")


def q8_0(b: Blocks) -> Floats:
    return times(b["qs"], b["d"])


def five_bits(b: Blocks) -> Bytes:
    """Quants of Q5_0 and Q5_1 [..., 32]: nibbles, and the highest bit of each in `qh`."""
    quants: Bytes = halves(b["qs"]) | np.unpackbits(b["qh"], axis=-1, bitorder="little") << np.uint8(4)
    return quants
