"""Weights in 8-bit floats with a scale for each block, as DeepSeek-V3, Qwen3-FP8 and MiniMax-M2 are published.

A weight `w` in float8_e4m3fn stands beside `w_scale_inv`, which its values are multiplied by: one scale a block of rows and
columns, the last block of either smaller where it does not divide, or one for the whole matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = "_scale_inv"  # what a weight's scales add to its name


def dequantize(weight: Tensor, scales: Tensor, block: tuple[int, int] | None) -> Tensor:
    """float8 [..., rows, columns] and scales [..., row blocks, column blocks], or one -> float32 [..., rows, columns].

    `block`: rows and columns of a block; None: a scale is for the whole matrix. ValueError or RuntimeError: the scales are not
    as many.
    """
    values, factors = weight.to(torch.float32), scales.to(torch.float32)
    if block is None:
        return values.mul_(factors.reshape(*weight.shape[:-2], 1, 1))
    rows, columns = weight.shape[-2:]
    expected = [*weight.shape[:-2], -(-rows // block[0]), -(-columns // block[1])]
    if list(scales.shape) != expected:
        raise ValueError(f"its scales are {list(scales.shape)}, expected {expected}")
    factors = factors.repeat_interleave(block[0], -2)[..., :rows, :]
    return values.mul_(factors.repeat_interleave(block[1], -1)[..., :columns])
