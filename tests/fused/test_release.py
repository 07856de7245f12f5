"""A model whose modules are torch's again computes what transformers does, not only what another released one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.fused.attention import DecodingAttention
from dali.fused.dense import PackedLinear
from dali.fused.layer import DecodingLayer
from dali.fused.release import release
from dali.kernels import native
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model
from logits import alike, random_prompts, scored, whole_logits

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
PROMPT = random_prompts((29,))[0]
# Experts beside others, latents, scaled embeddings with a soft cap, windows with sinks, recurrent states.
KINDS = ("qwen2_moe", "deepseek_v3", "gemma4_text", "gpt_oss", "lfm2_moe", "nemotron_h")
FUSED = DecodingAttention | DecodingLayer | PackedLinear


def released(model: Any, folder: Any) -> dali.LLM:
    llm = dali.load(save_model(model, folder), quant="w8")
    release(llm.model)
    llm.engine.decoder, llm.engine._native = None, False
    assert not [m for m in llm.model.modules() if isinstance(m, FUSED) or isinstance(m.forward, FUSED)]
    return llm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [family for family in KINDS if family in (*FAMILIES, *DECODING)])
def test_its_logits_are_transformers(tmp_path, monkeypatch, family, dtype):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    make = decoding_model if family in DECODING else random_model
    model = make(family, dtype=dtype)
    llm = released(model, tmp_path / "model")
    expected = whole_logits(model, PROMPT)
    for step_tokens in (512, 1, 5):
        assert alike(scored(llm, PROMPT, step_tokens), expected) > 0.9


def test_a_head_that_shares_the_embeddings_is_theirs(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    model = random_model("qwen3_moe", tie_word_embeddings=True)
    llm = released(model, tmp_path / "model")
    assert alike(scored(llm, PROMPT, 5), whole_logits(model, PROMPT)) > 0.9
