"""What a block of codes holds, as the packed format of the same values has it: see store/gguf/parts.py.

Instead of quants there are the bytes of a coded format's words, uint8 [rows, groups * 4 * bits]; src/dali/kernels/coded.py says
which bit is where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dali.store.gguf.values.coded import iq1_m_scale
from dali.store.gguf.values.fields import Blocks, Bytes

Parts = tuple[Bytes, list[NDArray[Any]]]


def _words(*words: Any) -> Bytes:
    """Words [..., groups] or [..., groups, n] side by side, as bytes."""
    each = [word.reshape(*word.shape[:2], 8, -1) for word in words]
    return np.concatenate(each, axis=-1).astype("<u4").view(np.uint8)


def _iq3_xxs(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4"), b["signs"]), [b["d"]]


def _iq3_s(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4"), b["signs"].view("<u4")), [b["d"], b["qh"], b["scales"]]


def _iq2_xxs(b: Blocks) -> Parts:
    return _words(b["qs"]["codes"].view("<u4"), b["qs"]["signs"]), [b["d"]]


def _iq2_xs(b: Blocks) -> Parts:
    words = b["qs"].reshape(*b.shape, 8, 4)
    low, high = ((words >> shift).astype(np.uint8).view("<u4") for shift in (0, 8))
    return _words(low, high), [b["d"], b["scales"]]


def _iq2_s(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4"), b["signs"].view("<u4")), [b["d"], b["qh"], b["scales"]]


def _iq1_s(b: Blocks) -> Parts:
    return _words(b["qs"].view("<u4")), [b["d"], b["qh"].view(np.int16)]


def _iq1_m(b: Blocks) -> Parts:
    threes = b["scales"][..., None] >> np.arange(0, 12, 6, dtype=np.uint16) & np.uint16(63)
    both = threes.reshape(*b.shape, 8).astype(np.uint8)  # of each group
    low = both[..., ::2] & np.uint8(15) | both[..., 1::2] << np.uint8(4)
    upper = (both >> np.uint8(4)).reshape(*b.shape, 2, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    d = iq1_m_scale(b.reshape(-1)).reshape(b.shape)
    high = np.bitwise_or.reduce(upper, axis=-1)
    return _words(b["qs"].view("<u4")), [d, np.ascontiguousarray(b["qh"]).view(np.int16), low, high]


CODED_PARTS: dict[str, Callable[[Blocks], Parts]] = {
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}
