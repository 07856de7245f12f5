"""Drafts change nothing: the same tokens, the same log probabilities, the same end, and the same is left to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.engine.budget import StateBudget
from dali.engine.draft import drafts
from dali.engine.sequence import Sequence
from dali.kernels import native
from dali.llm import LLM
from dali.offload.vram import state_size
from dali.step.recurrent import RecurrentState
from decoding_families import DECODING, decoding_model
from drafting import Always, Told
from families import FAMILIES, random_model, save_model

pytestmark = pytest.mark.skipif(not native.enabled(), reason="there are no compiled kernels")
# Plain; windows; latents; frequencies that change with the length; recurrent layers of each kind, alone and beside attention.
KINDS = ["qwen3_moe", "gpt_oss", "mixtral", "deepseek_v2", "phimoe", "lfm2_moe", "qwen3_next", "nemotron_h"]
RECURRENT = ("lfm2_moe", "qwen3_next", "nemotron_h")
GREEDY: dict[str, Any] = {"temperature": 0}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "seed": 5}
PENALISED: dict[str, Any] = {"temperature": 0.7, "seed": 7, "repeat_penalty": 1.2, "frequency_penalty": 0.3}
NEW = 14


def load(family: str, directory: Any, **options: Any) -> LLM:
    make = random_model if family in FAMILIES else decoding_model
    model = make(family, max_position_embeddings=128)
    return dali.load(save_model(model, directory), quant="w8", draft="ngram", threads=2, **options)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind in FAMILIES or kind in DECODING])
def llm(request, tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(drafts, "Pace", Always)
        yield load(request.param, tmp_path_factory.mktemp("model"))


def prompt(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [prompt(0, 9), prompt(1, 21), prompt(2, 4), prompt(3, 33)]


def asked(llm: LLM, ids: list[int], **sampling: Any) -> Sequence:
    return llm.sequence(ids, **{"max_tokens": NEW, "ignore_eos": True, "logprobs": 2} | sampling)


def found(sequence: Sequence) -> tuple[Any, ...]:
    assert sequence.computed == len(sequence.tokens) - (sequence.finish_reason != "stop")
    return sequence.generated, sequence.logprobs, sequence.finish_reason


def run(llm: LLM) -> None:
    while llm.engine.step():
        pass


def without(llm: LLM, prompts: list[list[int]], **sampling: Any) -> list[tuple[Any, ...]]:
    """What each gets alone, from nothing, a token a step."""
    taken, llm.engine.drafts = llm.engine.drafts, None
    try:
        results = []
        for ids in prompts:
            llm.engine.forget()
            sequence = asked(llm, ids, **sampling)
            llm.loop.complete([sequence])
            results.append(found(sequence))
        llm.engine.forget()
        return results
    finally:
        llm.engine.drafts = taken


def told(llm: LLM, ids: list[int], right: list[int], spoil: int, **sampling: Any) -> Sequence:
    sequence = asked(llm, ids, **sampling)
    sequence.ngrams = Told(sequence, right, spoil)  # type: ignore[assignment]
    return sequence


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
def test_answers_are_those_without_drafts(llm, sampling):
    """Alone and side by side, where they are few rows and where they are many."""
    expected = without(llm, PROMPTS, **sampling)
    for together in (1, len(PROMPTS)):
        llm.engine.forget()
        sequences = [
            told(llm, ids, right[0], at, **sampling)
            for at, (ids, right) in enumerate(zip(PROMPTS, expected, strict=True))
        ]
        llm.loop.complete(sequences, at_once=together)
        assert [found(one) for one in sequences] == expected
        assert sum(one.accepted for one in sequences) > 5
        assert sum(one.drafted - one.accepted for one in sequences) > 2


def test_whoever_joins_leaves_or_goes_on_from_others_gets_the_same(llm):
    """A later prompt goes on behind an answer, in its midst, and where another was cancelled."""
    expected = without(llm, PROMPTS, **GREEDY)
    first = expected[1][0]
    later = [[*PROMPTS[1], *first, 5, 6], [*PROMPTS[1], *first[:5], 7], [*PROMPTS[3], *expected[3][0][:2], 9]]
    answers = without(llm, later, **GREEDY)
    sequences = [
        told(llm, ids, right[0], at, **GREEDY)
        for at, (ids, right) in enumerate(zip(PROMPTS, expected, strict=True))
    ]
    engine = llm.engine
    for sequence in sequences:
        engine.add(sequence)
        engine.step()
    engine.abort(sequences[3])
    while engine.step():
        pass
    for sequence, right in zip(sequences[:3], expected, strict=False):
        assert found(sequence) == right
    for at, (ids, right) in enumerate(zip(later, answers, strict=True)):
        sequence = told(llm, ids, right[0], at, **GREEDY)
        llm.loop.complete([sequence])
        assert found(sequence) == right


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_a_step_that_is_interrupted_is_taken_back(llm, monkeypatch, at):
    """While tokens are chosen."""
    expected = without(llm, PROMPTS[:2], **GREEDY)
    sequences = [
        told(llm, ids, right[0], 3, **GREEDY) for ids, right in zip(PROMPTS[:2], expected, strict=True)
    ]
    calls = iter(range(1, 1000))
    plain = Sequence.push

    def interrupted(sequence: Sequence, token: int) -> None:
        plain(sequence, token)
        if next(calls) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Sequence, "push", interrupted)
    for sequence in sequences:
        llm.engine.add(sequence)
    interrupts = 0
    while True:
        try:
            if not llm.engine.step():
                break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    assert [found(one) for one in sequences] == expected


@pytest.fixture(scope="module", params=[kind for kind in RECURRENT if kind in DECODING])
def recurrent(request, tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(drafts, "Pace", Always)
        yield load(request.param, tmp_path_factory.mktemp("model"))


def test_going_back_may_be_interrupted(recurrent, monkeypatch):
    """Some layers are back at the last token that was right, others are not."""
    llm, (expected,) = recurrent, without(recurrent, PROMPTS[:1], **GREEDY)
    sequence = told(llm, PROMPTS[0], expected[0], 1, **GREEDY)
    plain, calls = RecurrentState.rollback, iter(range(1, 1000))

    def interrupted(state: RecurrentState, tokens: int) -> None:
        back = tokens < state.tokens
        plain(state, tokens)
        if back and next(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RecurrentState, "rollback", interrupted)
    llm.engine.add(sequence)
    with pytest.raises(KeyboardInterrupt):
        run(llm)
    run(llm)
    assert found(sequence) == expected


def test_no_byte_more_is_taken_than_was_counted(recurrent):
    llm, (expected,) = recurrent, without(recurrent, PROMPTS[:1], **GREEDY)
    size = state_size(llm.engine)
    llm.engine.limit_states(StateBudget(size.nbytes(llm.engine.reservation(64)), size))
    try:
        sequence = told(llm, PROMPTS[0], expected[0], 1, **GREEDY)
        llm.engine.add(sequence)
        most = 0
        while llm.engine.step():
            most = max(most, sequence.state.nbytes)
        assert sequence.accepted
        assert found(sequence) == expected
        assert 0 < most <= sequence.state_bytes
    finally:
        llm.engine.limit_states(None)
