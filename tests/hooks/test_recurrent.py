"""Recurrent layers in dali's engine: transformers' logits in each way a step can be cut, and its own functions elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.errors import DaliError
from dali.hooks import recurrent
from dali.hooks.calls import model_calls
from dali.kernels import native
from decoding_families import DECODING, decoding_model
from families import save_model
from families_sweep.tiny import folders, random_model, variants
from logits import DECODE, dali_logits, expected_logits, largest_difference, random_prompts

NAMES = ("nemotron_h", "granitemoehybrid", "lfm2_moe", "qwen3_next", "qwen3_5_moe_text")
FAMILIES = [family for family in NAMES if family in DECODING]
BY_CHANNEL = [family for family in ("kimi_linear", "bailing_hybrid") if family in folders()]
PROMPTS = random_prompts((21, 4, 1))


def model_of(family: str) -> Any:
    return decoding_model(family) if family in DECODING else random_model(variants(family)[0])


@pytest.mark.parametrize("kernels", ["", "torch"])
@pytest.mark.parametrize("family", FAMILIES + BY_CHANNEL)
def test_logits_equal_transformers(tmp_path, monkeypatch, family, kernels):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(native.VARIABLE, kernels)
    model = model_of(family)
    llm = dali.load(save_model(model, tmp_path / "model"), quant="f32")
    expected = [expected_logits(model, tokens) for tokens in PROMPTS]
    assert largest_difference(llm, PROMPTS, expected) < 1e-4


def test_outside_of_a_step_transformers_own_functions_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    model = decoding_model(FAMILIES[-1])
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        before = model(ids).logits
        dali.load(save_model(model, tmp_path / "model"), quant="f32")
        assert torch.equal(model(ids).logits, before)


def test_a_layer_that_calls_something_else_is_refused(monkeypatch):
    model = decoding_model(FAMILIES[-1]).to("meta")
    assert model_calls(model).top_k == 3
    monkeypatch.setattr(recurrent, "FUNCTIONS", {})
    with pytest.raises(DaliError, match="linear_attention"):
        model_calls(model)


@pytest.mark.skipif("nemotron_h" not in DECODING, reason="of newer transformers")
def test_the_limit_of_a_time_step_holds_while_decoding_as_in_a_prompt(tmp_path, monkeypatch):
    """transformers' own decoding forgets it."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    model, free = decoding_model("nemotron_h", time_step_min=0.5), decoding_model("nemotron_h")
    with torch.inference_mode():
        expected, unlimited = (
            each(torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -DECODE - 1 : -1]
            for each in (model, free)
        )
    assert not torch.allclose(unlimited, expected, rtol=1e-2, atol=1e-2)
    llm = dali.load(save_model(model, tmp_path / "model"), quant="f32")
    torch.testing.assert_close(dali_logits(llm, [PROMPTS[0]], 512)[0], expected, rtol=1e-4, atol=1e-4)
