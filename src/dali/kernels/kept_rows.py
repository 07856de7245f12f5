"""Keys and values in 8 bits: what the kernels keep of a head's key or value, computed by torch.

A row is the quants of all its values and then the scale of each 32 of them, a float16: what GGUF's Q8_0 has, and the values that
llama.cpp keeps with `--cache-type-k q8_0`. Sources: src/native/layout/kept_rows.h, src/native/kernels/kept_rows.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dali.kernels.formats import GROUP
from dali.kernels.reference import quantize_activations


def row_bytes(width: int) -> int:
    """Bytes of a row of `width` values."""
    return width + 2 * -(-width // GROUP)


def quantize(values: Tensor) -> Tensor:
    """Floats [..., width] -> rows, bytes [..., row_bytes(width)]. What is beyond a scale's float16, 8.3 million, becomes
    infinite; 32 values with one that is no finite number among them become NaN."""
    width = values.shape[-1]
    quants, scales = quantize_activations(values.reshape(-1, width).float())
    scales.masked_fill_(~quants.isfinite().all(-1), torch.nan)
    parts = quants.nan_to_num_(0).flatten(1)[:, :width].to(torch.int8), scales.to(torch.float16)
    rows = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
    return rows.view(*values.shape[:-1], row_bytes(width))


def dequantize(rows: Tensor, width: int) -> Tensor:
    """What rows of `width` values stand for, exactly: float32 [..., width]."""
    quants = rows[..., :width].contiguous().view(torch.int8).float()
    scales = rows[..., width:].contiguous().view(torch.float16).float()
    return quants * scales.repeat_interleave(GROUP, -1)[..., :width]
