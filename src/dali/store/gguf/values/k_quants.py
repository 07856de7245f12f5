"""Values of K-quants: 256 columns whose groups have scales, and perhaps minima, that are small integers times the block's."""

from __future__ import annotations

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
    quants = by_two_bits(b["qs"]).reshape(-1, 16, 16)
    return _with_minima(b, quants, b["scales"] & np.uint8(15), b["scales"] >> np.uint8(4))


def q3_k(b: Blocks) -> Floats:
    quants = q3_k_quants(b).view(np.int8) - np.int8(4)
    return times(
        quants.reshape(-1, 16, 16), single(b) * (q3_k_scales(b["scales"]).view(np.int8) - np.int8(32))
    )


def q4_k(b: Blocks) -> Floats:
    return _with_minima(b, by_four_bits(b["qs"]), *six_bit_scales(b["scales"]))


def q5_k(b: Blocks) -> Floats:
    return _with_minima(b, q5_k_quants(b), *six_bit_scales(b["scales"]))


def q6_k(b: Blocks) -> Floats:
    quants = q6_k_quants(b).view(np.int8) - np.int8(32)
    return times(quants.reshape(-1, 16, 16), single(b) * b["scales"])


def _with_minima(b: Blocks, quants: Bytes, scales: Bytes, minima: Bytes) -> Floats:
    """Quants [n, groups, columns] -> quant * (d * scale) - dmin * minimum."""
    return times(quants, single(b) * scales) - (single(b, "dmin") * minima)[..., None]


def q3_k_quants(b: Blocks) -> Bytes:
    """[...] -> [..., 8, 32], of 3 bits."""
    quants: Bytes = by_two_bits(b["qs"]) | fields(b["hmask"], 1) << np.uint8(2)
    return quants


def q3_k_scales(packed: Bytes) -> Bytes:
    """The 12 bytes of Q3_K, [..., 12] -> [..., 16], of 6 bits: 16 nibbles in 8 bytes, then the upper 2 bits of all."""
    low, high = halves(packed[..., :8]), fields(packed[..., 8:], 2).reshape(*packed.shape[:-1], 16)
    scales: Bytes = low | high << np.uint8(4)
    return scales


def q5_k_quants(b: Blocks) -> Bytes:
    """[...] -> [..., 8, 32], of 5 bits."""
    quants: Bytes = by_four_bits(b["qs"]) | fields(b["qh"], 1) << np.uint8(4)
    return quants


def q6_k_quants(b: Blocks) -> Bytes:
    """[...] -> [..., 8, 32], of 6 bits: 64 bytes hold four groups, the first two in low nibbles."""
    low = fields(b["ql"].reshape(*b.shape, 2, 64), 4).reshape(*b.shape, 8, 32)
    quants: Bytes = low | by_two_bits(b["qh"]) << np.uint8(4)
    return quants


def by_four_bits(qs: Bytes) -> Bytes:
    """[..., 128] -> [..., 8, 32]: 32 bytes hold two groups, the first in low nibbles."""
    return halves(qs.reshape(*qs.shape[:-1], 4, 32)).reshape(*qs.shape[:-1], 8, 32)


def by_two_bits(qs: Bytes) -> Bytes:
    """[..., 64] -> [..., 8, 32]: 32 bytes hold four groups, the first in the lowest bits."""
    return fields(qs.reshape(*qs.shape[:-1], 2, 32), 2).reshape(*qs.shape[:-1], 8, 32)
