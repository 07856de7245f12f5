"""Drafts over a GPU, on a stand-in for its driver: the answers are the CPU's without any."""

from __future__ import annotations

from typing import Any

import pytest

import dali
from dali.engine.draft import drafts
from dali.errors import DaliError
from dali.offload.gpu_model import GpuModel
from drafting import Always, Told
from families import random_model, save_model

PROMPTS = [[5, 6, 7, 8], [20, 21]]
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 5, "seed": 3, "max_tokens": 8, "ignore_eos": True}


def test_answers_are_those_of_a_cpu_without_drafts(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "Pace", Always)
    model = save_model(random_model("gpt_oss"), tmp_path)
    with dali.load(model, quant="w4") as llm:
        expected = llm.generate(PROMPTS, logprobs=1, **SAMPLING)
    options: dict[str, Any] = {"device": "cuda", "vram": "300KiB", "notify": [].append}
    with dali.load(model, quant="w4", draft="ngram", **options) as llm:
        assert isinstance(llm.engine.decoder, GpuModel)
        sequences = [llm.sequence(prompt, logprobs=1, **SAMPLING) for prompt in PROMPTS]
        for sequence, right in zip(sequences, expected, strict=True):
            sequence.ngrams = Told(sequence, right.tokens, 1, spoilt=0.9)  # type: ignore[assignment]
        llm.loop.complete(sequences)
        found = [(one.generated, one.logprobs) for one in sequences]
        assert found == [(one.tokens, one.logprobs) for one in expected]
        assert min(llm.telemetry.draft_accepted, llm.telemetry.draft_rejected) > 0
    assert driver.races == []


def test_they_are_refused_where_torch_computes_the_dense_part(driver, tmp_path):
    model = save_model(random_model("deepseek_v2"), tmp_path)
    with pytest.raises(DaliError, match="draft would change the last bits of answers: torch computes"):
        dali.load(
            model, quant="w4", draft="ngram", device="cuda", vram="300KiB", notify=[].append, prefetch="none"
        )
