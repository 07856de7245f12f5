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
from dali.store.gguf.coded_parts import CODED_PARTS
from dali.store.gguf.values import k_quants
from dali.store.gguf.values.fields import Blocks, Bytes, halves
from dali.store.gguf.values.plain import five_bits
from dali.store.gguf.values.ternary import tq1_0_digits

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


def _q5_0(b: Blocks) -> Parts:
    return five_bits(b), [b["d"]]


def _q5_1(b: Blocks) -> Parts:
    return five_bits(b), [b["d"], b["m"]]


def _super_scales(b: Blocks) -> list[NDArray[Any]]:
    return [b["d"], b["dmin"], *_paired(*k_quants.six_bit_scales(b["scales"]))]


def _paired(first: Bytes, second: Bytes) -> list[NDArray[Any]]:
    return [part.numpy() for part in pair_six_bits(torch.from_numpy(first), torch.from_numpy(second))]


def _q4_k(b: Blocks) -> Parts:
    return k_quants.by_four_bits(b["qs"]), _super_scales(b)


def _q5_k(b: Blocks) -> Parts:
    return k_quants.q5_k_quants(b), _super_scales(b)


def _q6_k(b: Blocks) -> Parts:
    return k_quants.q6_k_quants(b), [b["d"], b["scales"]]


def _q3_k(b: Blocks) -> Parts:
    scales = k_quants.q3_k_scales(b["scales"])
    return k_quants.q3_k_quants(b), [b["d"], *_paired(scales[..., ::2], scales[..., 1::2])]


def _q2_k(b: Blocks) -> Parts:
    return k_quants.by_two_bits(b["qs"]), [b["d"], b["dmin"], b["scales"]]


def _iq4_xs(b: Blocks) -> Parts:
    high = np.ascontiguousarray(b["scales_h"]).view(np.uint8)
    return halves(b["qs"].reshape(*b.shape, 8, 16)), [b["d"], high, b["scales_l"]]


def _nvfp4(b: Blocks) -> Parts:
    return halves(b["qs"].reshape(*b.shape, 4, 8)), [b["d"]]


def _tq2_0(b: Blocks) -> Parts:
    return k_quants.by_two_bits(b["qs"]), [b["d"]]


def _tq1_0(b: Blocks) -> Parts:
    return tq1_0_digits(b), [b["d"]]


PARTS: dict[str, Callable[[Blocks], Parts]] = {
    **CODED_PARTS,
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
