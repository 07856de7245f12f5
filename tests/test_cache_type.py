"""`cache_type="q8"`: keys and values in 8 bits change what a model computes once, and from then on nothing does."""

from __future__ import annotations

import pytest
import torch

import dali
from dali import DaliError
from dali.kernels import native
from dali.llm import LLM
from dali.offload.vram import state_size
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model
from logits import scored
from test_same_bits import PROMPT, check

compiled = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
KINDS = {  # of what is kept: all tokens' keys by groups of heads, some windows', latents, and beside recurrent states
    "qwen3_moe": torch.bfloat16,
    "gpt_oss": torch.bfloat16,
    "mixtral": torch.float32,
    "deepseek_v2": torch.float32,
    "qwen3_next": torch.float32,
    "gemma4_text": torch.bfloat16,
}


def load(family: str, dtype: torch.dtype, path, **options: object) -> LLM:
    make = decoding_model if family in DECODING else random_model
    return dali.load(save_model(make(family, dtype=dtype), path), quant="w8", **options)


@compiled
@pytest.mark.parametrize("family", [family for family in KINDS if family in (*FAMILIES, *DECODING)])
def test_however_a_prompt_is_cut(family, tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    llm = load(family, KINDS[family], tmp_path / "model", cache_type="q8")
    check(llm)
    plain = load(family, KINDS[family], tmp_path / "model")
    ours, theirs = scored(llm, PROMPT, 512).float(), scored(plain, PROMPT, 512).float()
    assert not torch.equal(ours, theirs)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.15
    assert (llm.engine.cache_type, plain.engine.cache_type) == (
        "q8",
        str(KINDS[family]).removeprefix("torch."),
    )


@compiled
def test_all_that_counts_memory_counts_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    token = {}
    for cache_type in ("model", "q8"):
        with load(
            "qwen3_moe", torch.bfloat16, tmp_path / "model", cache_type=cache_type, cache_ram="64MiB"
        ) as llm:
            size = state_size(llm.engine)
            token[cache_type] = size.layers[0][0]
            llm.generate(PROMPT, max_tokens=1, ignore_eos=True)
            assert llm.stats()["prefixes"]["bytes"] == 3 * token[cache_type] * len(PROMPT)
            assert llm.stats()["cache_type"] == llm.engine.cache_type
    assert token == {"model": 2 * 2 * 16 * 2, "q8": 2 * 2 * (16 + 2)}  # keys and values, heads, width


@compiled
def test_a_folder_serves_each_type_what_it_wrote_with_the_bits_of_a_fresh_computation(dali_tiny, tmp_path):
    prompt = list(range(5, 205))

    def ask(cache_type: str) -> dali.Completion:
        with dali.load(dali_tiny, cache_type=cache_type, cache_dir=tmp_path / "prefixes") as llm:
            return llm.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True, logprobs=5)

    fresh = {cache_type: ask(cache_type) for cache_type in ("q8", "model")}
    assert fresh["q8"].logprobs != fresh["model"].logprobs
    for cache_type, expected in fresh.items():
        again = ask(cache_type)
        assert (expected.cached_tokens, again.cached_tokens) == (0, 192)  # whole blocks
        assert (again.tokens, again.logprobs) == (expected.tokens, expected.logprobs)


@compiled
def test_a_simulated_device_gives_the_cpu_s_bits(dali_tiny):
    prompt = list(range(5, 65))
    answers = []
    for options in ({}, {"device": "sim:paper", "vram": "2MiB"}):
        with dali.load(dali_tiny, cache_type="q8", **options) as llm:
            answers.append(llm.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True, logprobs=5))
    assert answers[0].logprobs == answers[1].logprobs


def test_it_needs_the_compiled_kernels(dali_tiny, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    with pytest.raises(DaliError, match="cache_type q8 needs dali's compiled kernels"):
        dali.load(dali_tiny, cache_type="q8")
