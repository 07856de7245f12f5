"""Layers with recurrent state within a step."""

from __future__ import annotations

import pytest
import torch

import dali
from dali.llm import LLM
from families import HYBRIDS, random_model, save_model
from logits import DECODE, dali_logits, random_prompts

PROMPT = random_prompts((17,))[0]


def loaded(model: object, directory) -> LLM:
    return dali.load(save_model(model, directory / "model"), quant="f32")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.skipif("nemotron_h" not in HYBRIDS, reason="of newer transformers")
def test_the_limit_of_a_step_holds_while_decoding_as_in_a_prompt(tmp_path):
    """transformers' own decoding forgets it."""
    model = random_model("nemotron_h", time_step_min=0.5)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT]), use_cache=False).logits[0, -DECODE - 1 : -1]
    free = random_model("nemotron_h")
    with torch.inference_mode():
        unlimited = free(torch.tensor([PROMPT]), use_cache=False).logits[0, -DECODE - 1 : -1]
    assert not torch.allclose(unlimited, expected, rtol=1e-2, atol=1e-2)
    found = dali_logits(loaded(model, tmp_path), [PROMPT], 512)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
