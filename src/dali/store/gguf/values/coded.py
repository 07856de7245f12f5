"""Values of coded types: a code stands for 4 or 8 weights that lie side by side, a row of its grid; signs are apart from them.

All products but the last are exact in float32, so that their order does not matter: a half has 11 bits, a scale at most 5, a
weight of a grid 6.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dali.kernels.grids import table
from dali.store.gguf.values.fields import Blocks, Bytes, Floats, in_turn, single, times

_HALF, _QUARTER, _EIGHTH = np.float32(0.5), np.float32(0.25), np.float32(0.125)


def iq2_xxs(b: Blocks) -> Floats:
    weights = _weights("iq2_xxs", b["qs"]["codes"]) * _seven_signs(b["qs"]["signs"])
    return times(weights.reshape(-1, 8, 32), _scales(b, _upper_scale(b["qs"]["signs"])) * _QUARTER)


def iq2_xs(b: Blocks) -> Floats:
    """A word holds a code in 9 bits, and its signs in 7."""
    weights = _weights("iq2_xs", b["qs"] & np.uint16(511)) * _signs(table("signs")[b["qs"] >> np.uint16(9)])
    return times(weights.reshape(-1, 16, 16), _scales(b, in_turn(b["scales"], 4)) * _QUARTER)


def iq2_s(b: Blocks) -> Floats:
    weights = _weights("iq2_s", _with_high(b["qs"], in_turn(b["qh"], 2))) * _signs(b["signs"])
    return times(weights.reshape(-1, 16, 16), _scales(b, in_turn(b["scales"], 4)) * _QUARTER)


def iq3_xxs(b: Blocks) -> Floats:
    weights = _weights("iq3_xxs", b["qs"]).reshape(-1, 8, 4, 8) * _seven_signs(b["signs"])
    return times(weights.reshape(-1, 8, 32), _scales(b, _upper_scale(b["signs"])) * _HALF)


def iq3_s(b: Blocks) -> Floats:
    weights = _weights("iq3_s", _with_high(b["qs"], in_turn(b["qh"], 1))).reshape(-1, 32, 8) * _signs(
        b["signs"]
    )
    return times(weights.reshape(-1, 8, 32), single(b) * _odd(in_turn(b["scales"], 4)))


def iq1_s(b: Blocks) -> Floats:
    """A word of `qh` holds the upper 3 bits of four codes, a scale, and which way all weights are moved."""
    qh = b["qh"][..., None]
    codes = _with_high(b["qs"].reshape(-1, 8, 4), qh >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7))
    weights = _moved(codes, qh >> np.uint16(15))
    scales = single(b) * _odd((b["qh"] >> np.uint16(12) & np.uint16(7)).astype(np.uint8))
    return times(weights.reshape(-1, 8, 32), scales * _EIGHTH)


def iq1_m(b: Blocks) -> Floats:
    """A nibble of `qh` holds the upper 3 bits of a code, and which way its weights are moved."""
    qh = in_turn(b["qh"], 4)
    weights = _moved(_with_high(b["qs"], qh & np.uint8(7)), qh >> np.uint8(3))
    threes = b["scales"][..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & np.uint16(7)
    scales = iq1_m_scale(b).astype(np.float32)[:, None] * _odd(threes.reshape(-1, 16).astype(np.uint8))
    return times(weights.reshape(-1, 16, 16), scales * _EIGHTH)


def iq1_m_scale(b: Blocks) -> Any:
    """float16 [n]: its nibbles are the uppermost of the four words of `scales`."""
    nibbles = b["scales"] >> np.uint16(12) << np.arange(0, 16, 4, dtype=np.uint16)
    return np.bitwise_or.reduce(nibbles, axis=-1).view(np.float16)


def _scales(b: Blocks, scales: Bytes) -> Floats:
    return single(b) * (scales.astype(np.float32) + _HALF)


def _odd(scales: Bytes) -> Bytes:
    odd: Bytes = np.uint8(2) * scales + np.uint8(1)
    return odd


def _upper_scale(words: Any) -> Bytes:
    """The 4 bits that 28 of signs leave of a word."""
    scales: Bytes = (words >> np.uint32(28)).astype(np.uint8)
    return scales


def _with_high(low: Bytes, high: Any) -> Any:
    """Codes of more than 8 bits."""
    return low | high.astype(np.uint16) << np.uint16(8)


def _weights(grid: str, codes: Any) -> Any:
    """Codes [...] -> int8 [..., 4 or 8]."""
    return np.take(_words(grid), codes)[..., None].view(np.int8)


@cache
def _words(grid: str) -> Any:
    """A grid as one word a code: numpy looks up words faster than rows."""
    rows = table(grid)
    return rows.view(f"<u{rows.shape[1]}")[:, 0]


@cache
def _sign_words() -> Any:
    every = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (1 - 2 * every.view(np.int8)).view("<u8")[:, 0]


def _signs(bits: Bytes) -> Any:
    """Bits of minus signs [...] -> int8 [..., 8], 1 or -1."""
    return np.take(_sign_words(), bits)[..., None].view(np.int8)


def _seven_signs(words: Any) -> Any:
    """Words [n, 8] of four times 7 bits -> int8 [n, 8, 4, 8], 1 or -1."""
    sevens = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    return _signs(table("signs")[sevens])


def _moved(codes: Any, down: Any) -> Any:
    """IQ1's weights in eighths: its grid's -1, 0 and 1, moved up or down by one eighth."""
    move = 1 - 2 * down.astype(np.int8)
    return np.int8(8) * _weights("iq1", codes) + move[..., None]
