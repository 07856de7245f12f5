"""What a GGUF block type holds, as the packed format of the same values has it: quants, and scales part by part.

`PARTS[type]`: blocks [rows, blocks a row] -> quants uint8 [rows, columns] and the parts of `Format.scales`, each [rows, values].
The way without compiled kernels, and what those are held to (src/native/layout/blocks.h).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.kernels.formats import pair_six_bits
from dali.store.gguf.blocks import Blocks, Bytes, fields, halves, six_bit_scales

Parts = tuple[Bytes, list[NDArray[Any]]]


def _flat(part: NDArray[Any]) -> NDArray[Any]:
    """[rows, blocks, ...] -> [rows, values]."""
    return part.reshape(len(part), -1)


def _q8_0(b: Blocks) -> Parts:
    return b["qs"].view(np.uint8) ^ np.uint8(128), [b["d"]]


def _q4_0(b: Blocks) -> Parts:
    return halves(b["qs"]), [b["d"]]


def _mxfp4(b: Blocks) -> Parts:
    return halves(b["qs"]), [b["e"]]


def _q4_1(b: Blocks) -> Parts:
    return halves(b["qs"]), [b["d"], b["m"]]


def _fifth_bit(qh: Bytes) -> Bytes:
    return np.unpackbits(qh, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(b: Blocks) -> Parts:
    return halves(b["qs"]) | _fifth_bit(b["qh"]), [b["d"]]


def _q5_1(b: Blocks) -> Parts:
    return halves(b["qs"]) | _fifth_bit(b["qh"]), [b["d"], b["m"]]


def _super_scales(b: Blocks) -> list[NDArray[Any]]:
    pairs = pair_six_bits(*map(torch.from_numpy, six_bit_scales(b["scales"])))
    return [b["d"], b["dmin"], *(pair.numpy() for pair in pairs)]


def _by_64(qs: Bytes) -> Bytes:
    """[..., 128] -> [..., 8, 32]: 32 bytes hold two groups, the first in low nibbles."""
    return halves(qs.reshape(*qs.shape[:-1], 4, 32)).reshape(*qs.shape[:-1], 8, 32)


def _q4_k(b: Blocks) -> Parts:
    return _by_64(b["qs"]), _super_scales(b)


def _q5_k(b: Blocks) -> Parts:
    return _by_64(b["qs"]) | fields(b["qh"], 1) << np.uint8(4), _super_scales(b)


def _q6_k(b: Blocks) -> Parts:
    low = fields(b["ql"].reshape(*b.shape, 2, 64), 4).reshape(*b.shape, 2, 4, 32)
    return low | fields(b["qh"].reshape(*b.shape, 2, 32), 2) << np.uint8(4), [b["d"], b["scales"]]


def _low_pairs(qs: Bytes) -> Bytes:
    """[..., 64] -> [..., 8, 32]: 32 bytes hold four groups, the first in the lowest bits."""
    return fields(qs.reshape(*qs.shape[:-1], 2, 32), 2).reshape(*qs.shape[:-1], 8, 32)


def _q3_k(b: Blocks) -> Parts:
    quants = _low_pairs(b["qs"]) | fields(b["hmask"], 1) << np.uint8(2)
    low = fields(b["scales"][..., :8], 4).reshape(*b.shape, 16)
    scales = torch.from_numpy(low | fields(b["scales"][..., 8:], 2).reshape(*b.shape, 16) << np.uint8(4))
    pairs = pair_six_bits(scales[..., ::2], scales[..., 1::2])
    return quants, [b["d"], *(pair.numpy() for pair in pairs)]


def _q2_k(b: Blocks) -> Parts:
    return _low_pairs(b["qs"]), [b["d"], b["dmin"], b["scales"]]


def _iq4_xs(b: Blocks) -> Parts:
    return halves(b["qs"].reshape(*b.shape, 8, 16)), [b["d"], b["scales_h"].view(np.uint8), b["scales_l"]]


def _nvfp4(b: Blocks) -> Parts:
    return halves(b["qs"].reshape(*b.shape, 4, 8)), [b["d"]]


def _tq2_0(b: Blocks) -> Parts:
    return _low_pairs(b["qs"]), [b["d"]]


def _tq1_0(b: Blocks) -> Parts:
    """Digits to the base of three: a byte is 256 times a fraction, of which each multiplication by 3 brings the next."""
    groups = []
    for packed, count in ((b["qs"][..., :32], 5), (b["qs"][..., 32:], 5), (b["qh"], 4)):
        powers: Any = 3 ** np.arange(count, dtype=np.uint8)[:, None]
        digits = (packed[..., None, :] * powers).astype(np.uint16) * 3 >> 8
        groups.append(digits.reshape(*b.shape, -1).astype(np.uint8))
    return np.concatenate(groups, axis=-1), [b["d"]]


PARTS: dict[str, Callable[[Blocks], Parts]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "MXFP4": _mxfp4,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q3_K": _q3_k,
    "Q2_K": _q2_k,
    "IQ4_NL": _q4_0,
    "IQ4_XS": _iq4_xs,
    "NVFP4": _nvfp4,
    "TQ2_0": _tq2_0,
    "TQ1_0": _tq1_0,
}


def parts_of(blocks: Blocks, type: str) -> tuple[Tensor, list[Tensor]]:
    """Blocks [rows, blocks a row] -> quants uint8 [rows, columns] and scale parts [rows, values]."""
    quants, scales = PARTS[type](blocks)
    return torch.from_numpy(np.ascontiguousarray(_flat(quants))), [
        torch.from_numpy(np.ascontiguousarray(_flat(part))) for part in scales
    ]
