"""What a model answers in a step or in many, to be held against another's answers."""

from __future__ import annotations

import torch

from dali.llm import LLM

TOKENS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17], [18]]


def decoded(llm: LLM, steps: int = 8) -> list[torch.Tensor]:
    """Logits of decoding steps of three sequences at once, and of their prompts."""
    sequences = [
        llm.sequence(tokens, max_tokens=steps + 1, temperature=0, ignore_eos=True) for tokens in TOKENS
    ]
    seen: list[torch.Tensor] = []
    forward = llm.engine._forward

    def watched(plan, every_row=False):
        seen.append(forward(plan, every_row))
        return seen[-1]

    llm.engine.forget()
    llm.engine._forward = watched
    for sequence in sequences:
        llm.engine.add(sequence)
    while llm.engine.step():
        pass
    llm.engine._forward = forward
    return seen
