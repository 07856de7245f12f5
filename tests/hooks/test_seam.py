"""What an experts module runs in dali's place for it, and who may see that."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.errors import DaliError
from dali.hooks import seam
from families import COMMON, random_model


def test_a_module_has_the_layer_that_was_set_and_no_part_more():
    module = nn.Linear(2, 2)
    assert seam.dali_layer(module) is None
    layer = nn.Linear(3, 3)  # itself a module, as a policy's own layer may be
    seam.set_dali_layer(module, layer)
    assert seam.dali_layer(module) is layer
    assert list(module.children()) == []
    assert set(module.state_dict()) == {"weight", "bias"}


def test_an_experts_module_runs_its_layer_and_says_what_is_missing_without_one():
    model = random_model("mixtral")
    module = next(iter(seam.experts_modules(model).values()))
    model.set_experts_implementation(seam.IMPLEMENTATION)
    hidden, ids, weights = torch.ones(1, 64), torch.zeros(1, 2).long(), torch.ones(1, 2)
    with pytest.raises(DaliError, match="no dali experts"):
        module(hidden, ids, weights)
    seam.set_dali_layer(module, lambda hidden, ids, weights: hidden * 3)
    assert torch.equal(module(hidden, ids, weights), hidden * 3)


def experts_of(family: str, **changes: object) -> nn.Module:
    return next(iter(seam.experts_modules(random_model(family, **changes)).values()))


@pytest.mark.parametrize("limit", [0.5, 7.0, 1e3, 1e5])
def test_a_clamp_is_read_wherever_its_limit_is(limit):
    module = experts_of("gpt_oss")
    module.limit = limit
    activation = seam.describe("experts", module).shape.activation
    assert (activation.kind, activation.alpha, activation.limit) == ("clamped_swiglu", 1.702, limit)


@pytest.mark.parametrize("limit", [0.5, 7.0, 1e3])
def test_a_clamped_silu_is_read_by_its_limit(limit):
    module = experts_of("qwen3_moe")
    plain = module._apply_gate

    def clamped(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return plain(torch.cat([gate.clamp(max=limit), up.clamp(-limit, limit)], dim=-1))

    module._apply_gate, module.swiglu_limit = clamped, limit
    activation = seam.describe("experts", module).shape.activation
    assert (activation.kind, activation.alpha, activation.limit) == ("clamped_silu", 0.0, limit)


@pytest.mark.parametrize("limit", [2.0, 11.0, 13.0, 40.0, 1e4])
def test_a_clamp_before_a_plain_activation_is_refused_however_high(limit):
    """Values beyond the probe's would be computed without it."""
    module = experts_of("qwen3_moe")
    plain = module._apply_gate
    module._apply_gate = lambda gate_up: plain(gate_up.clamp(max=limit))
    with pytest.raises(DaliError, match=r"limits what goes into its activation \(silu\)"):
        seam.describe("experts", module)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_an_activation_in_float32_is_itself(kind):
    module = experts_of("qwen3_moe", hidden_act=kind)
    plain = module._apply_gate
    module._apply_gate = lambda gate_up: plain(gate_up.float()).to(gate_up.dtype)
    expected = {"gelu_pytorch_tanh": "gelu_tanh"}.get(kind, kind)
    assert seam.describe("experts", module).shape.activation.kind == expected


def test_experts_outside_the_interface_are_not_called_dense():
    with torch.device("meta"):
        config = CONFIG_MAPPING["llama4_text"](
            **COMMON, intermediate_size=40, head_dim=16, num_local_experts=4
        )
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(DaliError, match="does not route through its experts interface"):
        seam.describe_model(model, "it")
