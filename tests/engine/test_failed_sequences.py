"""A request that failed: what others go on from is never of the step it failed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dali
from dali.errors import DaliError
from dali.llm import LLM

PROMPT = [*range(5, 85), 7, 9, 11]  # more than a block of the prefix cache
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


def spoil(patch: pytest.MonkeyPatch, llm: LLM, from_token: int = 0) -> None:
    """From now on steps leave NaN, in keys and values and as logits: those that compute a token from that one on."""
    plain = llm.engine._forward

    @torch.inference_mode()
    def forward(plan: Any, every_row: bool = False) -> torch.Tensor:
        logits = plain(plan, every_row)
        if all(sequence.computed + tokens <= from_token for sequence, tokens in plan):
            return logits
        for sequence, _ in plan:
            for tensor in sequence.state.kept:
                tensor.fill_(float("nan"))
        return logits.fill_(float("nan"))

    patch.setattr(llm.engine, "_forward", forward)


def test_the_step_that_it_failed_in_is_left_to_nobody(dali_tiny, monkeypatch):
    llm = dali.load(dali_tiny, quant="w8")
    expected = llm.generate(PROMPT, **GREEDY).tokens
    llm.engine.forget()
    with monkeypatch.context() as patch:
        spoil(patch, llm)
        sequence = llm.sequence(PROMPT, **GREEDY)
        with pytest.raises(DaliError, match="not finite"):
            llm.loop.complete([sequence])
    later = llm.sequence(PROMPT, **GREEDY)
    llm.loop.complete([later])
    assert later.generated == expected
    assert later.cached_tokens == 0
    assert sequence.state.nbytes == 0  # whoever holds it holds no memory


@pytest.fixture
def llm(dali_tiny, tmp_path):
    """Computes prompts in steps of 64 tokens, and keeps them on disk, too."""
    with dali.load(dali_tiny, quant="w8", cache_dir=tmp_path / "prefixes") as llm:
        llm.engine.scheduler.step_tokens = 64
        yield llm


def left(llm: LLM) -> tuple[int, int]:
    """Entries in RAM and on disk."""
    folder = llm.engine.prefixes.folder
    assert folder is not None
    folder.flush()
    return len(llm.engine.prefixes.tree), len(list(Path(folder.path).iterdir()))


def fail(llm: LLM, prompt: list[int], from_token: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, llm, from_token)
        with pytest.raises(DaliError, match="not finite"):
            llm.loop.complete([llm.sequence(prompt, **GREEDY)])


LONG = [5 + at % 89 for at in range(300)]  # four blocks and a part of one


def test_nothing_is_left_of_a_prompt_that_failed_in_a_later_step(llm):
    expected = llm.generate(LONG[:70], **GREEDY).tokens
    kept = left(llm)
    fail(llm, LONG[:64] + [9] * 200, 200)
    assert left(llm) == kept
    later = llm.sequence(LONG[:64] + [9] * 100, **GREEDY)
    llm.loop.complete([later])
    assert later.cached_tokens == 64
    assert llm.generate(LONG[:70], **GREEDY).tokens == expected


def test_nor_of_one_whose_blocks_ram_has_no_room_for(llm):
    llm.engine.prefixes.tree.budget = 1
    fail(llm, LONG, 299)
    assert left(llm) == (0, 0)


def test_what_led_to_a_token_stays_when_a_later_one_fails(llm):
    fail(llm, LONG, 301)
    later = llm.sequence(LONG, **GREEDY)
    llm.loop.complete([later])
    assert 192 <= later.cached_tokens <= 299
