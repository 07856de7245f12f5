"""Activations and sigmoids: what they compute, and that a value's place does not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

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


@every_dtype
def test_a_gated_norm(dtype):
    torch.manual_seed(0)
    x, gate, weight = torch.randn(9, 60), torch.randn(9, 80).to(dtype)[:, 20:], torch.rand(60).to(dtype)
    gated = x.double() * F.silu(gate.double())
    grouped = gated.view(9, 3, 20)
    normed = grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (normed.view(9, 60) * weight.double()).float()
    out = native.gated_rms_norm(x, gate, weight, 20, 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(native.gated_rms_norm(x[4:5], gate[4:5], weight, 20, 1e-5), out[4:5])


def test_silu_of_values_beyond_what_e_to_them_holds():
    gate = torch.tensor([[-1000.0, -200.0, -89.0, 0.0, 89.0, 1000.0, -torch.inf, torch.nan]])
    out = native.gated_rms_norm(torch.ones(1, 8), gate, torch.ones(8), 1, 0.0)
    assert out[0, 4:6].tolist() == [1.0, 1.0]
    assert out[0, 7].isnan()
