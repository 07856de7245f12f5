"""Gates of shared experts: how much of them a token gets does not depend on who shares the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dali.fused.mlp import FusedGate
from dali.kernels import native

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
SIGMOIDS = (torch.sigmoid, functional.sigmoid, torch.Tensor.sigmoid, nn.Sigmoid())


def gated(dtype: torch.dtype) -> tuple[FusedGate, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 1, bias=False, dtype=dtype)
    return FusedGate(linear), linear, torch.randn(100, 64).to(dtype) * 8


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_token_gets_the_same_alone_and_among_many(dtype, sigmoid):
    gate, linear, x = gated(dtype)
    together = sigmoid(gate(x))
    assert type(together) is torch.Tensor
    assert torch.equal(together, torch.cat([sigmoid(gate(row)) for row in x.split(1)]))
    torch.testing.assert_close(together, sigmoid(linear(x)))


@torch.inference_mode()
def test_whatever_else_is_made_of_a_gate_is_as_of_any_tensor():
    gate, linear, x = gated(torch.float32)
    logits = native.gate_logits(x, linear.weight)
    assert torch.equal(gate(x), logits)
    assert torch.equal((2 * gate(x)).tanh(), (2 * logits).tanh())
    assert torch.equal(torch.sigmoid(gate(x), out=torch.empty(100, 1)), torch.sigmoid(logits))
