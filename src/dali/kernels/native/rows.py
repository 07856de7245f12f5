"""What is computed row by row: norms, activations, sigmoids."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES

ACTIVATED_DTYPES = tuple(DTYPES)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, out: Tensor | None = None) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + epsilon)) over the last dimension, in float32; rounded before and after weight, and
    after it alone where weight is float32 and x is narrower. out: like x, to write to."""
    x = x.contiguous()
    width = x.shape[-1]
    assert weight.dtype in (x.dtype, torch.float32) and weight.is_contiguous() and weight.shape == (width,)
    out = torch.empty_like(x) if out is None else out
    assert out.is_contiguous() and (out.shape, out.dtype) == (x.shape, x.dtype)
    library.rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        DTYPES[weight.dtype],
        DTYPES[x.dtype],
        x.numel() // width,
        width,
        epsilon,
        out.data_ptr(),
    )
    return out


def activate(x: Tensor, kind: str) -> Tensor:
    """The activation `kind`, one of kernels.activation.PLAIN, of each value, in float32 and rounded to x's
    dtype. It does not depend on the value's place, as torch's may."""
    x = x.contiguous()
    out = torch.empty_like(x)
    library.activate(kind, x.data_ptr(), DTYPES[x.dtype], x.numel(), out.data_ptr())
    return out


def sigmoid(x: Tensor) -> Tensor:
    """The sigmoid of each value by glibc's exponential, in float32 and rounded to x's dtype."""
    x = x.contiguous()
    out = torch.empty_like(x)
    library.sigmoid(x.data_ptr(), DTYPES[x.dtype], x.numel(), out.data_ptr())
    return out
