"""The flattened row of a step: the tokens of all its sequences, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dali.engine.sequence import Sequence
from dali.policies.signals import Step
from dali.step.context import Segment, StepContext, running

Plan = list[tuple[Sequence, int]]  # how many tokens of which sequences a step computes


@dataclass(frozen=True)
class Row:
    """`ids` and `positions` of tokens; `last`: the rows of each sequence's last token, if it is computed, and of those drafted
    behind it."""

    plan: Plan
    segments: list[Segment]
    ids: list[int]
    positions: list[int]
    last: list[int]

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, prompt still to come included."""
        return max(len(sequence.tokens) for sequence, _ in self.plan)

    def told(self, model: Any, embeddings: bool) -> Step:
        """What policies are told of it; with what the tokens become in `model`, where they ask for that."""
        tokens_of = [tokens for _, tokens in self.plan]
        numbers = np.repeat([sequence.number for sequence, _ in self.plan], tokens_of)
        prefill = np.repeat([segment.prefill for segment in self.segments], tokens_of)
        embedded = None
        if embeddings:
            table = model.get_input_embeddings()
            embedded = table(torch.tensor(self.ids, device=model.device)).float().cpu().numpy()
        return Step(numbers, prefill, embedded)

    def through(self, model: Any, step: StepContext, every_row: bool) -> Tensor:
        """Run the model's own forward -> logits [rows, vocabulary] of the `last` ones or of every row."""
        # One way to the model's device for all three.
        sent = torch.tensor([*self.ids, *self.positions, *self.last], dtype=torch.long).to(model.device)
        there = sent[None, : 2 * len(self.ids)]
        with running(step):
            out = model(
                input_ids=there[:, : len(self.ids)],
                position_ids=there[:, len(self.ids) :],
                use_cache=False,
                logits_to_keep=0 if every_row else sent[2 * len(self.ids) :],
            )
        logits: Tensor = out.logits[0]
        # Some models have no such argument, and answer for every row.
        return logits if every_row or len(logits) == len(self.last) else logits[self.last]


def row_of(plan: Plan) -> Row:
    """Lay a step's tokens out, in the order of its plan."""
    row = Row(plan, [], [], [], [])
    for sequence, tokens in plan:
        begin, end = sequence.computed, sequence.computed + tokens
        row.segments.append(Segment(sequence.state, len(row.ids), tokens, begin, sequence.in_prefill))
        row.ids.extend(sequence.tokens[begin:end])
        row.ids.extend(sequence.draft[: max(end - len(sequence.tokens), 0)])
        row.positions.extend(range(begin, end))
        row.last.extend(range(len(row.ids) - 1 - (end - len(sequence.tokens)), len(row.ids)))
    return row
