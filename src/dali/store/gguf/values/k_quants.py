"""Values of K-quants: 256 columns whose groups have scales, and perhaps minima, that are small integers times the block's."""

from __future__ import annotations

from typing import Any

import numpy as np

from dali.store.gguf.values.fields import Blocks, Bytes, Floats, fields, halves, single, times


def six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes of Q4_K and Q5_K, [..., 12] -> scales and minima, [..., 8] each."""
    low, high, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=-1)
    return scales, minima


def q2_k(b: Blocks) -> Floats:
    """A byte of `scales` holds a scale in its low nibble, a minimum in the high one."""
    quants = fields(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return _with_minima(b, quants, b["scales"] & np.uint8(15), b["scales"] >> np.uint8(4))


def q3_k(b: Blocks) -> Floats:
    low = fields(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    quants = (low | fields(b["hmask"], 1) << np.uint8(2)).view(np.int8) - np.int8(4)
    return times(quants.reshape(-1, 16, 16), single(b) * q3_k_scales(b["scales"]))


def q3_k_scales(packed: Bytes) -> Any:
    """The 12 bytes of Q3_K, [n, 12] -> int8 [n, 16] from -32 to 31: 16 nibbles in 8 bytes, then all their upper 2 bits."""
    low, high = halves(packed[:, :8]), fields(packed[:, 8:], 2).reshape(-1, 16)
    return (low | high << np.uint8(4)).view(np.int8) - np.int8(32)


def q4_k(b: Blocks) -> Floats:
    return _with_minima(b, _nibbles_by_64(b["qs"]), *six_bit_scales(b["scales"]))


def q5_k(b: Blocks) -> Floats:
    quants: Bytes = _nibbles_by_64(b["qs"]) | fields(b["qh"], 1) << np.uint8(4)
    return _with_minima(b, quants, *six_bit_scales(b["scales"]))


def q6_k(b: Blocks) -> Floats:
    low = fields(b["ql"].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = fields(b["qh"].reshape(-1, 2, 32), 2)
    quants = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    return times(quants.reshape(-1, 16, 16), single(b) * b["scales"])


def _with_minima(b: Blocks, quants: Bytes, scales: Bytes, minima: Bytes) -> Floats:
    """Quants [n, groups, columns] -> quant * (d * scale) - dmin * minimum."""
    return times(quants, single(b) * scales) - (single(b, "dmin") * minima)[..., None]


def _nibbles_by_64(qs: Bytes) -> Bytes:
    """[n, 128] -> [n, 8, 32]: 32 bytes hold two groups, the first in low nibbles."""
    return halves(qs.reshape(-1, 4, 32)).reshape(-1, 8, 32)
