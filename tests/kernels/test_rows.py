"""Activations and sigmoids: what they compute, and that a value's place does not matter."""

from __future__ import annotations

import math

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
