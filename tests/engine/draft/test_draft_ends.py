"""Answers that end amid tokens that were drafted; drafts over a simulated accelerator, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import dali
from dali.engine.completion import completion
from dali.engine.constraint.shape import Shape
from dali.engine.draft import drafts
from dali.engine.engine import Engine
from dali.engine.sequence import Sequence
from dali.engine.text.text import Text
from dali.errors import DaliError, UsageError
from dali.kernels import native
from dali.llm import LLM
from drafting import Always, Told
from families import random_model, save_model

pytestmark = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
SAID = "Once upon a time there was a little dog. The dog was happy. Once upon a time there was a little"


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(dali_tiny) -> Any:
    """The bundled model, which drafts whatever it finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "Pace", Always)
        yield dali.load(dali_tiny, quant="w8", draft="ngram")


def both(llm: LLM, make: Any) -> tuple[Sequence, Sequence]:
    """One that was computed a token a step, and one with drafts that are right, further than it goes."""
    one, other = make(), make()
    taken, llm.engine.drafts = llm.engine.drafts, None
    llm.loop.complete([one], fresh=True)
    llm.engine.drafts = taken
    other.ngrams = Told(other, [*one.generated, 5, 6, 7, 8], 0, spoilt=0)  # type: ignore[assignment]
    llm.loop.complete([other], fresh=True)
    return one, other


def same(one: Sequence, other: Sequence) -> bool:
    assert one.computed == other.computed
    ends = replace(completion(one), prefill_seconds=0, decode_seconds=0)
    plain = {"prefill_seconds": 0, "decode_seconds": 0, "drafted": 0, "accepted": 0}
    return ends == replace(completion(other), **plain) and bool(other.accepted)


@pytest.mark.parametrize("tokens", range(8, 16))
def test_a_limit_ends_an_answer_amid_a_draft(tiny, tokens):
    one, other = both(tiny, lambda: tiny.sequence(SAID, max_tokens=tokens, temperature=0, logprobs=1))
    assert one.finish_reason == "length"
    assert same(one, other)


@pytest.mark.parametrize("begin", range(20, 60, 7))
def test_a_stop_string_ends_an_answer_amid_a_draft(tiny, begin):
    text = tiny.generate(SAID, max_tokens=30, temperature=0).text
    stop = text[begin : begin + 3]
    one, other = both(tiny, lambda: tiny.sequence(SAID, max_tokens=30, temperature=0, stop=stop))
    assert one.finish_reason == "stop"
    assert same(one, other)


@pytest.mark.parametrize("at", range(4, 14, 3))
def test_a_token_that_ends_answers_ends_one_amid_a_draft(tiny, at):
    tokens = tiny.generate(SAID, max_tokens=30, temperature=0).tokens

    def make() -> Sequence:
        asked = tiny.sequence(SAID, max_tokens=30, temperature=0)
        return Sequence(replace(asked.request, eos=frozenset({tokens[at]})), Text(tiny.tokenizer))

    one, other = both(tiny, make)
    assert one.finish_reason == "stop"
    assert same(one, other)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}])
def test_a_grammar_holds_an_answer_with_drafts_as_without(tiny, sampling):
    asked = [{"role": "user", "content": "Tell me of a little dog."}]
    schema = {
        "type": "array",
        "items": {"enum": ["sit", "roll", "sing"]},
        "minItems": 3,
        "maxItems": 5,
    }
    one, other = both(
        tiny, lambda: tiny.chat_sequence(asked, shape=Shape(schema), max_tokens=60, logprobs=1, **sampling)
    )
    assert one.finish_reason == "stop"
    assert same(one, other)


def test_streams_and_prompts_that_follow_are_the_same(tiny):
    expected = tiny.generate(SAID, max_tokens=40, temperature=0)
    assert "".join(tiny.stream(SAID, max_tokens=40, temperature=0)) == expected.text
    prompt = tiny.encode(SAID) + expected.tokens + tiny.encode_further(" The dog")
    one, _ = both(tiny, lambda: tiny.sequence(prompt, max_tokens=20, temperature=0))
    resumed = tiny.generate(prompt, max_tokens=20, temperature=0)
    assert resumed.cached_tokens >= len(prompt) - 4
    assert resumed.tokens == one.generated


def test_a_simulated_accelerator_drafts_by_its_own_clock(tmp_path):
    """The same drafts each time, and the answers of a CPU without any."""
    model = save_model(random_model("qwen3_moe"), tmp_path / "model")
    prompts = [[5, 9, 17, 33, 21], [88, 4, 50]]

    def answers(**options: Any) -> tuple[list[Any], tuple[int, int]]:
        with dali.load(model, quant="w8", **options) as llm:
            sequences = [llm.sequence(ids, max_tokens=40, temperature=0, logprobs=1) for ids in prompts]
            for sequence, right in zip(sequences, expected, strict=False):
                sequence.ngrams = Told(sequence, right[0], 0, spoilt=0.2)  # type: ignore[assignment]
            llm.loop.complete(sequences)
            counts = llm.telemetry.draft_accepted, llm.telemetry.draft_rejected
            assert counts[0] == sum(sequence.accepted for sequence in sequences)
            return [(sequence.generated, sequence.logprobs) for sequence in sequences], counts

    expected: list[Any] = []
    expected, _ = answers()
    simulated = {"device": "sim:laptop-8gb", "vram": 1 << 20, "prefetch": "none", "draft": "ngram"}
    found = [answers(**simulated) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][0] == expected
    assert found[0][1][0] > 10


def test_torch_s_products_are_refused(dali_tiny, monkeypatch):
    with pytest.raises(DaliError, match=r"draft would change .* torch computes .* linears of dali-tiny"):
        dali.load(dali_tiny, quant="bf16", draft="ngram")
    monkeypatch.setenv("DALI_KERNELS", "torch")
    with pytest.raises(DaliError, match="draft needs the compiled kernels"):
        dali.load(dali_tiny, quant="w8", draft="ngram")


def test_other_bits_of_several_rows_are_refused(tmp_path, monkeypatch):
    model, plain = save_model(random_model("qwen3_moe"), tmp_path / "model"), Engine._forward

    def rounded(self: Engine, plan: Any, every_row: bool = False) -> torch.Tensor:
        logits = plain(self, plan, every_row)
        return logits * (1 + 1e-6) if any(one.draft for one, _ in plan) else logits

    monkeypatch.setattr(Engine, "_forward", rounded)
    with pytest.raises(DaliError, match="draft would change the last bits of what model computes"):
        dali.load(model, quant="w8", draft="ngram")


def test_lossy_parts_exclude_drafts():
    with pytest.raises(UsageError, match="draft ngram leaves answers as they are, and lossy"):
        dali.LoadOptions(device="sim:paper", policy="daop", lossy=True, draft="ngram")
    with pytest.raises(UsageError, match="Unknown way to draft 'model'"):
        dali.LoadOptions(draft="model")
