"""What is computed row by row: norms, activations, sigmoids."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.route import address_of

ACTIVATED_DTYPES = tuple(DTYPES)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + epsilon)) over the last dimension, in float32; rounded before and after weight."""
    x = x.contiguous()
    width = x.shape[-1]
    assert weight.dtype == x.dtype and weight.is_contiguous() and weight.shape == (width,)
    out = torch.empty_like(x)
    library.rms_norm(
        x.data_ptr(), weight.data_ptr(), DTYPES[x.dtype], x.numel() // width, width, epsilon, out.data_ptr()
    )
    return out


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, group: int, epsilon: float) -> Tensor:
    """weight [width] * each `group` values of x * silu(gate) over their root mean square: x float32 [..., width], gate as x, of
    any float type, each token's contiguous -> float32, as x."""
    x, width = x.contiguous(), x.shape[-1]
    gate = gate.reshape(-1, width)
    assert x.dtype == torch.float32 and gate.numel() == x.numel() and gate.stride(1) == 1
    assert weight.is_contiguous() and weight.shape == (width,) and width % group == 0
    out = torch.empty_like(x)
    library.gated_rms_norm(
        x.data_ptr(),
        (gate.data_ptr(), DTYPES[gate.dtype], gate.stride(0)),
        address_of(weight),
        len(gate),
        width,
        group,
        epsilon,
        out.data_ptr(),
    )
    return out


def activate(x: Tensor, kind: str) -> Tensor:
    """The activation `kind`, one of kernels.activation.KINDS but clamped_swiglu, of each value, in float32 and rounded to x's
    dtype. It does not depend on the value's place, as torch's may."""
    x = x.contiguous()
    out = torch.empty_like(x)
    library.activate(kind, x.data_ptr(), DTYPES[x.dtype], x.numel(), out.data_ptr())
    return out


def sigmoid(x: Tensor) -> Tensor:
    """The sigmoid of each value by the C library's exponential, in float32 and rounded to x's dtype."""
    x = x.contiguous()
    out = torch.empty_like(x)
    library.sigmoid(x.data_ptr(), DTYPES[x.dtype], x.numel(), out.data_ptr())
    return out
