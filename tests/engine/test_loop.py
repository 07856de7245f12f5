"""The loop that owns an engine's steps, over an engine that counts instead of computing."""

from __future__ import annotations

import pytest
import torch

from dali.engine.loop import Loop
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import DaliError


class Counting:
    """Each step gives every live sequence its next number."""

    def __init__(self) -> None:
        self.live: list[Sequence] = []
        self.forgotten = 0
        self.most = 0

    def add(self, sequence: Sequence) -> None:
        self.live.append(sequence)
        self.most = max(self.most, len(self.live))

    def forget(self) -> None:
        self.forgotten += 1

    def abort(self, sequence: Sequence) -> None:
        if sequence in self.live:
            sequence.abort()
            self.live.remove(sequence)

    def step(self) -> bool:
        for sequence in list(self.live):
            logits = torch.zeros(100)
            logits[len(sequence.tokens)] = float("nan") if sequence.tokens[0] == 99 else 1.0
            sequence.advance(logits)
            if sequence.finish_reason is not None:
                self.live.remove(sequence)
        return bool(self.live)


def sequence(first: int, limit: int) -> Sequence:
    return Sequence(Request((first,), limit, SamplingParams(temperature=0)))


def test_sequences_run_to_their_own_ends():
    engine = Counting()
    sequences = [sequence(1, 3), sequence(2, 6), sequence(3, 4)]
    Loop(engine).complete(sequences)
    assert [s.generated for s in sequences] == [[1, 2], [1, 2, 3, 4, 5], [1, 2, 3]]
    assert engine.most == 3


def test_so_many_at_once_and_the_next_when_one_leaves():
    engine, steps = Counting(), []
    sequences = [sequence(1, 3), sequence(2, 6), sequence(3, 4)]
    Loop(engine).complete(
        sequences, at_once=2, fresh=True, after_step=lambda live: steps.append([s.tokens[0] for s in live])
    )
    assert engine.most == 2
    assert engine.forgotten == 3
    assert steps == [[1, 2], [1, 2], [2, 3], [2, 3], [2, 3]]


def test_the_error_of_one_ends_all_and_leaves_nothing_behind():
    engine = Counting()
    sequences = [sequence(1, 9), sequence(99, 9), sequence(2, 9)]
    with pytest.raises(DaliError, match="not finite"):
        Loop(engine).complete(sequences, at_once=2)
    assert engine.live == []
    assert sequences[0].finish_reason == "abort"
    assert sequences[2].finish_reason is None


def test_no_sequence_is_no_work():
    Loop(Counting()).complete([])
