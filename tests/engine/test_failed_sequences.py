"""A request that failed: what others go on from is never of the step it failed in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dali
from dali.errors import DaliError
from dali.llm import LLM

PROMPT = [*range(5, 85), 7, 9, 11]  # more than a block of the prefix cache
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


def spoil(patch: pytest.MonkeyPatch, llm: LLM) -> None:
    """From now on steps leave NaN, in keys and values and as logits."""
    plain = llm.engine._forward

    @torch.inference_mode()
    def forward(plan: Any, every_row: bool = False) -> torch.Tensor:
        logits = plain(plan, every_row)
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
