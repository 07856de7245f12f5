"""Values of ternary types: -1, 0 or 1 times the block's scale."""

from __future__ import annotations

import numpy as np

from dali.store.gguf.values.fields import Blocks, Bytes, Floats, times
from dali.store.gguf.values.k_quants import by_two_bits


def tq1_0(b: Blocks) -> Floats:
    return times(tq1_0_digits(b).view(np.int8) - np.int8(1), b["d"])


def tq2_0(b: Blocks) -> Floats:
    """2 bits a weight; what no writer makes of them, 3, is twice the scale."""
    quants = by_two_bits(b["qs"]).reshape(-1, 256)
    return times(quants.view(np.int8) - np.int8(1), b["d"])


def tq1_0_digits(b: Blocks) -> Bytes:
    """[...] -> [..., 256], 0 to 2: a byte is a fraction of 256, whose digits to base 3 are five weights (four in `qh`)."""
    parts = ((b["qs"][..., :32], 5), (b["qs"][..., 32:], 5), (b["qh"], 4))
    return np.concatenate([_digits(packed, count) for packed, count in parts], axis=-1)


def _digits(packed: Bytes, count: int) -> Bytes:
    """[..., bytes] -> [..., count * bytes]: the first digit of each byte, then the second of each ..."""
    powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
    fractions = packed[..., None, :] * powers  # what runs over 8 bits are the digits before
    digits: Bytes = (fractions.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8)
    return digits.reshape(*packed.shape[:-1], -1)
