"""What a sequence computes does not depend on what it took over from others, in any bit."""

from __future__ import annotations

import pytest

import dali
from conversing import Conversations
from dali.kernels import native
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model

pytestmark = pytest.mark.skipif(not native.enabled(), reason="torch rounds by how many tokens a step has")
CONTEXT = 192


@pytest.mark.parametrize(
    ("family", "cache_type"),
    [
        ("qwen3_moe", "model"),
        ("gpt_oss", "model"),
        ("qwen3_next", "model"),
        ("deepseek_v2", "model"),
        ("gpt_oss", "q8"),
    ],
)
def test_random_conversations_are_answered_as_by_a_fresh_engine(family, cache_type, tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "stores"))
    make = random_model if family in FAMILIES else decoding_model
    if family not in FAMILIES and family not in DECODING:
        pytest.skip("transformers writes it otherwise")
    model = make(family, max_position_embeddings=CONTEXT)
    llm = dali.load(save_model(model, tmp_path / "model"), quant="w8", cache_type=cache_type)
    (tmp_path / "prefixes").mkdir()
    conversations = Conversations(llm, tmp_path / "prefixes", seed=1, most=CONTEXT, words=97)
    for _ in range(50):
        conversations.converse()
    conversations.finish()
    counts = conversations.counts
    assert counts.different == 0
    assert counts.cached_tokens > 0.3 * counts.prompt_tokens
    happened = (
        counts.forks,
        counts.edits,
        counts.restarts,
        counts.evicted,
        counts.interrupts,
        *counts.taken.values(),
    )
    assert min(happened) > 0
