"""The two real models: the same greedy tokens through dali as through plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import dali

PROMPTS = ["Once upon a time", "The capital of France is", "def main():", "And God said,"]
NEW_TOKENS = 24


@pytest.mark.parametrize("name", ["dali_tiny", "smollm2_moe"])
def test_greedy_tokens_equal_transformers(name, request, tmp_path, monkeypatch):
    # Before the cache moves: smollm2-moe is built into the real one.
    directory = request.getfixturevalue(name)
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    llm = dali.load(directory, quant="f32", dtype="float32")
    prompts = [llm.encode(prompt) for prompt in PROMPTS]
    together = llm.generate(prompts, temperature=0, max_tokens=NEW_TOKENS)
    for prompt, completion in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
        )
        expected = [token for token in out[0, len(prompt) :].tolist() if token not in llm.eos]
        assert completion.tokens == expected
