"""Activations against their definitions and against gpt-oss's own gate."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from dali.kernels.activation import KINDS, Activation

POINTS = [-1e4, -100.0, -7.0, -1.5, -1e-3, -0.0, 0.0, 1e-3, 1.5, 7.0, 100.0, 1e4]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


DEFINITIONS = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_plain_activations(kind):
    x, up = torch.tensor(POINTS, dtype=torch.float64), torch.linspace(-3, 3, len(POINTS), dtype=torch.float64)
    expected = torch.tensor([DEFINITIONS[kind](value) for value in POINTS], dtype=torch.float64)
    torch.testing.assert_close(Activation(kind)(x, up), expected * up, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(Activation(kind)(None, x), expected, rtol=1e-9, atol=1e-12)


def test_clamped_swiglu_is_gpt_oss_own():
    config = GptOssConfig(hidden_size=4, intermediate_size=8, num_local_experts=2, num_experts_per_tok=1)
    with torch.device("meta"):
        experts = GptOssExperts(config)
    torch.manual_seed(0)
    gate, up = 12 * torch.randn(2, 50, 8)
    expected = experts._apply_gate(torch.stack([gate, up], dim=-1).flatten(-2))
    found = Activation("clamped_swiglu", experts.alpha, experts.limit)(gate, up)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_clamped_silu():
    gate, up = torch.cartesian_prod(torch.tensor(POINTS), torch.tensor(POINTS)).unbind(1)
    low = torch.tensor([DEFINITIONS["silu"](min(value, 7.0)) for value in gate.tolist()])
    torch.testing.assert_close(Activation("clamped_silu", 0, 7.0)(gate, up), low * up.clamp(-7.0, 7.0))


@pytest.mark.parametrize("kind", KINDS)
def test_large_inputs_stay_finite(kind):
    x = torch.tensor([-1e15, 1e15])
    assert Activation(kind, 1.702, 7.0)(x, torch.ones(2)).isfinite().all()
