"""Sequences of models with recurrent layers: prompts that continue earlier ones, and steps that are interrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.engine.engine import OPENING
from dali.kernels import native
from dali.llm import LLM
from decoding_families import DECODING, decoding_model
from families import save_model
from logits import Forced

FAMILIES = [family for family in ("lfm2_moe", "qwen3_next", "nemotron_h") if family in DECODING]
PROMPT = torch.randint(3, 97, (50,), generator=torch.Generator().manual_seed(0)).tolist()
ANSWER = [5, 6, 7, 8]


@pytest.fixture(
    scope="module", params=[(family, native) for family in FAMILIES for native in (True, False)], ids=str
)
def llm(request, tmp_path_factory) -> Any:
    family, compiled = request.param
    if compiled and not native.AVAILABLE:
        pytest.skip("the kernels were not compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(native.VARIABLE, "" if compiled else "torch")
        model = decoding_model(family, max_position_embeddings=128)
        yield dali.load(save_model(model, tmp_path_factory.mktemp("model")), quant="w8")


def answer(llm: LLM, prompt: list[int], tokens: list[int] = ANSWER) -> tuple[int, torch.Tensor]:
    """How much of the prompt was taken over, and the logits as the answer is these tokens."""
    sequence = llm.sequence(prompt, max_tokens=len(tokens), ignore_eos=True)
    sequence.sampler = Forced(tokens)  # type: ignore[assignment]
    llm.loop.complete([sequence])
    return sequence.cached_tokens, torch.stack(sequence.sampler.logits)  # type: ignore[attr-defined]


def fresh(llm: LLM, prompt: list[int]) -> torch.Tensor:
    llm.engine.forget()
    return answer(llm, prompt)[1]


def same(llm: LLM, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Every bit where dali's kernels compute; torch's linears round by how many tokens there are."""
    most = float((ours - theirs).abs().max())
    return most == 0 if native.enabled() else most < 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("step_tokens", [512, 7])
@pytest.mark.parametrize(
    ("later", "taken"),
    [
        (PROMPT, len(PROMPT) - 1),  # asked again
        ([*PROMPT, *ANSWER[:-1], 9, 10, 11], len(PROMPT) + len(ANSWER) - 1),  # a conversation goes on
        (
            [*PROMPT[:-3], 9, 10, *PROMPT[:5]],
            len(PROMPT) - OPENING,
        ),  # ... whose template opens answers otherwise
        ([*PROMPT, *ANSWER[:2], 9, 10, 11], len(PROMPT) + 2),  # ... whose answer ends otherwise: a step back
        ([*PROMPT, *ANSWER[:1], 9, 10, 11], len(PROMPT) - 1),  # ... is written otherwise
        ([*PROMPT[:10], 9, 10, 11], 0),  # nothing was kept that far back
        ([4, *PROMPT], 0),
    ],
)
def test_a_later_prompt_goes_on_from_the_last_place_that_was_kept(llm, later, taken, step_tokens):
    llm.engine.scheduler.step_tokens = step_tokens
    expected = fresh(llm, later)
    fresh(llm, PROMPT)
    cached, logits = answer(llm, later)
    assert cached == taken
    assert same(llm, logits, expected)


def test_turns_of_a_conversation_can_be_gone_back_by(llm):
    """The place before the second question is still there after its answer."""
    second = [*PROMPT, *ANSWER[:-1], *range(20, 60)]
    other = [*PROMPT[:-3], 9, 10, 11]
    expected = fresh(llm, other)
    fresh(llm, PROMPT)
    assert answer(llm, second)[0] == len(PROMPT) + len(ANSWER) - 1
    cached, logits = answer(llm, other)
    assert cached == len(PROMPT) - OPENING
    assert same(llm, logits, expected)


@pytest.mark.parametrize("at", [1, 3, 8, 9, 11])
def test_an_interrupted_step_is_taken_back(llm, monkeypatch, at):
    """Some layers have seen the step's tokens, others have not."""
    llm.engine.scheduler.step_tokens = 7
    expected = fresh(llm, PROMPT)
    llm.engine.forget()
    sequence = llm.sequence(PROMPT, max_tokens=len(ANSWER), ignore_eos=True)
    sequence.sampler = Forced(ANSWER)  # type: ignore[assignment]
    llm.engine.add(sequence)
    monkeypatch.setattr(llm.engine, "decoder", None)
    layer = llm.model.model.layers[2]
    plain, calls = layer.forward, iter(range(1, 100))

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return plain(*arguments, **keywords)

    monkeypatch.setattr(layer, "forward", interrupted)
    raised = 0
    while True:
        try:
            if not llm.engine.step():
                break
        except KeyboardInterrupt:
            raised += 1
    assert raised == 1
    assert same(llm, torch.stack(sequence.sampler.logits), expected)  # type: ignore[attr-defined]
