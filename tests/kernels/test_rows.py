"""Activations and sigmoids: what they compute, and that a value's place does not matter."""

from __future__ import annotations

import ctypes
import math
import platform

import pytest
import torch

from dali.kernels import native
from dali.kernels.activation import PLAIN

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@every_dtype
@pytest.mark.parametrize("kind", PLAIN)
def test_activations(kind, dtype):
    x = torch.linspace(-9, 9, 4001).to(dtype)
    close = {torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(
        native.activate(x, kind), PLAIN[kind](x.double()).to(dtype), rtol=close, atol=close / 10
    )


@every_dtype
@pytest.mark.parametrize("count", [1, 7, 17, 2049, 40000])
def test_a_value_has_the_same_bits_wherever_it_stands(count, dtype):
    torch.manual_seed(0)
    x = torch.randn(count).to(dtype)
    whole = native.activate(x, "silu")
    begin = count // 3
    assert torch.equal(native.activate(x[begin:], "silu"), whole[begin:])


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="unknown activation swish"):
        native.activate(torch.zeros(3), "swish")


@every_dtype
def test_sigmoids(dtype):
    x = torch.linspace(-30, 30, 999).to(dtype)
    expected = torch.tensor([1 / (1 + math.exp(-value)) for value in x.tolist()]).to(dtype)
    torch.testing.assert_close(native.sigmoid(x), expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is no glibc")
@pytest.mark.skipif(
    not native.AVAILABLE or native.variant() == "portable",
    reason="glibc's exponential may fuse nothing here",
)
def test_sigmoids_have_the_bits_of_glibcs_exponential():
    bits = torch.arange(0, 0x42E00000, 50021, dtype=torch.int32)  # 0 to 112
    x = torch.cat((bits.view(torch.float32), -bits.view(torch.float32), torch.linspace(-20, 20, 40001)))
    expf = ctypes.CDLL("libm.so.6").expf
    expf.restype, expf.argtypes = ctypes.c_float, [ctypes.c_float]
    powers = torch.tensor([expf(value) for value in (-x).tolist()])
    assert torch.equal(native.sigmoid(x), 1 / (1 + powers))


def test_gelu_is_as_good_as_its_rounding():
    x = torch.linspace(-9, 9, 200_001)
    exact = 0.5 * x.double() * (1 + torch.special.erf(x.double() / math.sqrt(2)))
    error = (native.activate(x, "gelu") - exact).abs()
    assert (error / (x.abs() * 2**-24).clamp(min=1e-30))[x != 0].max() < 4
