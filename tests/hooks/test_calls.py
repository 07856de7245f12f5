"""How far each attention layer sees, and what the engine cannot step, told before weights are read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.errors import DaliError
from dali.hooks.calls import model_calls
from families import COMMON, FAMILIES

ROUTED = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24, "enable_moe_block": True}
GEMMA = {
    "head_dim": 16,
    "intermediate_size": 40,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def skeleton(model_type: str, **fields: object):
    config = CONFIG_MAPPING[model_type](**COMMON | FAMILIES.get(model_type, {}) | fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "fields", "windows"),
    [
        ("mixtral", {}, [7, 7, 7]),  # its attention is told the window
        ("phimoe", {"sliding_window": 7}, [7, 7, 7]),  # only its mask tells
        ("phimoe", {}, [None, None, None]),  # longrope, which looks at positions
        (
            "qwen2_moe",
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            [9, None, None],
        ),
        ("qwen2_moe", {"use_sliding_window": False, "sliding_window": 9}, [None, None, None]),
        ("gpt_oss", {}, [5, None, 5]),
        ("deepseek_v2", {}, [None, None, None]),
    ],
)
def test_windows_are_those_of_the_masks(family, fields, windows):
    calls = model_calls(skeleton(family, **fields))
    assert list(calls.windows.values()) == windows
    assert list(calls.windows) == [f"model.layers.{layer}.self_attn" for layer in range(3)]


def test_a_window_may_be_longer_than_the_context():
    """The context may be extended."""
    assert set(model_calls(skeleton("phimoe", sliding_window=4096)).windows.values()) == {4096}


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_is_what_the_experts_are_called_with(family):
    assert model_calls(skeleton(family)).top_k == FAMILIES[family]["num_experts_per_tok"]


def test_top_k_by_another_name():
    fields = GEMMA | ROUTED | {"num_hidden_layers": 4, "hidden_size_per_layer_input": 0}
    assert model_calls(skeleton("gemma4_text", **fields)).top_k == 2


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        (
            "gemma4_text",
            GEMMA | ROUTED | {"num_hidden_layers": 4, "use_bidirectional_attention": "all"},
            "later tokens",
        ),
        (
            "llama4_text",
            {"attention_chunk_size": 8, "head_dim": 16, "intermediate_size": 40},
            "attends neither to all earlier tokens",
        ),
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, "linear_attention"),
        ("gemma2", {"head_dim": 16, "intermediate_size": 40, "attn_logit_softcapping": 50.0}, "soft-caps"),
    ],
)
def test_what_the_engine_cannot_step_is_named(family, fields, why):
    with pytest.raises(DaliError, match=why) as error:
        model_calls(skeleton(family, **fields))
    assert "dali.attach" in error.value.fix


def test_the_model_is_left_as_it_was():
    model = skeleton("gpt_oss")
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    model_calls(model)
    assert model.config._attn_implementation == implementation
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
