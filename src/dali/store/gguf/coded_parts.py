"""What a block of codes holds, as the packed format of the same values has it: see store/gguf/parts.py.

Instead of quants there are the bytes of a coded format's words, uint8 [rows, groups * 4 * bits]; src/dali/kernels/coded.py says
which bit is where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.kernels.coded import ORDER
from dali.store.gguf.values.coded import iq1_m_scale
from dali.store.gguf.values.fields import Blocks, Bytes

Words = NDArray[Any]  # uint32 [rows, blocks, groups]
Parts = tuple[Bytes, list[NDArray[Any]]]


def _words(*words: Any) -> Bytes:
    """Words [..., groups] or [..., groups, n] side by side, as bytes."""
    each = [word.reshape(*word.shape[:2], 8, -1) for word in words]
    return np.concatenate(each, axis=-1).astype("<u4").view(np.uint8)


def _codes(qs: Bytes) -> Words:
    """Codes of 8 columns: in the order in which kernels find those of the first half in every other byte."""
    ordered = qs.reshape(*qs.shape[:2], 8, 4)[..., ORDER]
    return np.ascontiguousarray(ordered).view("<u4")[..., 0]


def _by_half(signs: Words) -> Words:
    """The bits of 32 columns -> those of columns 0 to 15 in low nibbles, of 16 to 31 in high ones."""
    n = np.arange(8, dtype=np.uint32)
    nibbles = (signs[..., None] >> 4 * n & np.uint32(15)) << 8 * (n % 4) + 4 * (n // 4)
    words: Words = np.bitwise_or.reduce(nibbles, axis=-1)
    return words


def _seven_signs(sevens: Words, eighths: Any) -> Words:
    """[..., 4] times 7 signs, and a bit that takes the eighth's place."""
    eight = (sevens | eighths << np.uint32(7)) << np.arange(0, 32, 8, dtype=np.uint32)
    return _by_half(np.bitwise_or.reduce(eight, axis=-1))


def _signs_and_scale(words: Words) -> Words:
    """Words of 28 signs and 4 bits of a scale, whose two bits in the middle change places."""
    sevens = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & np.uint32(127)
    scale = words[..., None] >> np.array([28, 30, 29, 31], dtype=np.uint32) & np.uint32(1)
    return _seven_signs(sevens, scale)


def _plain_signs(b: Blocks) -> Words:
    return _by_half(b["signs"].view("<u4"))


def _iq3_xxs(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4"), _signs_and_scale(b["signs"])), [b["d"]]


def _iq3_s(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4"), _plain_signs(b)), [b["d"], b["qh"], b["scales"]]


def _iq2_xxs(b: Blocks) -> Parts:
    return _words(_codes(b["qs"]["codes"]), _signs_and_scale(b["qs"]["signs"])), [b["d"]]


def _iq2_xs(b: Blocks) -> Parts:
    words = b["qs"].astype(np.uint32).reshape(*b.shape, 8, 4)
    codes = (words & np.uint32(255)).astype(np.uint8)
    signs = _seven_signs(words >> np.uint32(9), words >> np.uint32(8) & np.uint32(1))
    return _words(_codes(codes), signs), [b["d"], b["scales"]]


def _iq2_s(b: Blocks) -> Parts:
    return _words(_codes(b["qs"]), _plain_signs(b)), [b["d"], b["qh"], b["scales"]]


def _iq1_s(b: Blocks) -> Parts:
    return _words(_codes(b["qs"])), [b["d"], b["qh"].view(np.int16)]


def _iq1_m(b: Blocks) -> Parts:
    threes = b["scales"][..., None] >> np.arange(0, 12, 6, dtype=np.uint16) & np.uint16(63)
    both = threes.reshape(*b.shape, 8).astype(np.uint8)  # of each group
    low = both[..., ::2] & np.uint8(15) | both[..., 1::2] << np.uint8(4)
    upper = (both >> np.uint8(4)).reshape(*b.shape, 2, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    d = iq1_m_scale(b.reshape(-1)).reshape(b.shape)
    high = np.bitwise_or.reduce(upper, axis=-1)
    return _words(_codes(b["qs"])), [d, np.ascontiguousarray(b["qh"]).view(np.int16), low, high]


CODED_PARTS: dict[str, Callable[[Blocks], Parts]] = {
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}
