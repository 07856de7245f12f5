"""What recurrent layers do with a step's tokens, as kernels/recurrence.py has it, in native calls."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.route import address_of
from dali.kernels.recurrence import Stretch

CONVOLVED_DTYPES = (torch.float32, torch.bfloat16)
SILU = {None: False, "silu": True, "swish": True}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.convolve(), for x of one of CONVOLVED_DTYPES and an activation of SILU."""
    assert x.stride(1) == 1 and out.is_contiguous() and out.dtype == x.dtype
    taps = weight.T.to(torch.float32).contiguous()
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    library.convolve(
        x.data_ptr(),
        x.stride(0),
        DTYPES[x.dtype],
        weight.shape[0],
        weight.shape[1],
        taps.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        SILU[activation],
        _addresses(stretches),
        out.data_ptr(),
    )


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    normalised: bool,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.delta_rule()."""
    parts = [part.to(torch.float32).contiguous() for part in (query, key, value, decay, beta)]
    floats = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    assert floats.is_contiguous()
    library.delta_rule(
        key.shape[1],
        value.shape[1],
        key.shape[2],
        value.shape[2],
        decay.dim() == 3,
        normalised,
        *((part.data_ptr(), part.stride(0)) for part in parts),
        _addresses(stretches),
        floats.data_ptr(),
    )
    if floats is not out:
        for rows, _, _ in stretches:
            out[rows] = floats[rows]


def selective_scan(
    x: Tensor,
    steps: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    step_bias: Tensor,
    limits: tuple[float, float],
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """As recurrence.selective_scan(); each token's x, b, c and steps are contiguous."""
    assert out.is_contiguous() and out.shape == x.shape and out.dtype == torch.float32
    sizes = x.shape[1], x.shape[2], b.shape[1], b.shape[2]
    per_head = [None if part is None else part.contiguous() for part in (rate, step_bias, skip)]
    library.scan(
        library.SelectiveScan(sizes, tuple(map(address_of, per_head)), limits),
        *((part.data_ptr(), DTYPES[part.dtype], part.stride(0)) for part in (x, b, c, steps)),
        _addresses(stretches),
        out.data_ptr(),
    )


def _addresses(stretches: list[Stretch]) -> list[tuple[int, int, int, int]]:
    return [
        (rows.start, rows.stop - rows.start, before.data_ptr(), after.data_ptr())
        for rows, before, after in stretches
    ]
