"""A sequence's state as the engine uses it: layers that can be cut back beside one that overwrites what it keeps."""

from __future__ import annotations

import pytest
import torch

from dali.step.state import SequenceState


class Running:
    """A recurrent layer: one number, which each token changes."""

    trims = False

    def __init__(self) -> None:
        self.sum, self.tokens = 0, 0
        self.nbytes = 16

    def push(self, token: int) -> None:
        self.sum, self.tokens = 3 * self.sum + token, self.tokens + 1

    def snapshot(self) -> object:
        return self.sum, self.tokens

    def reaches(self, tokens: int, snapshot: object) -> bool:
        return tokens == self.tokens or snapshot is not None

    def rollback(self, tokens: int, snapshot: object) -> None:
        if snapshot is not None:
            self.sum, self.tokens = snapshot  # type: ignore[misc]
        assert self.tokens == tokens


def push(state: SequenceState, tokens: list[int], recurrent: bool) -> None:
    for token in tokens:
        row = torch.full((1, 1, 1), float(token))
        state.kv(0).append(row, row, None)
        if recurrent:
            state.layer(1, Running).push(token)


def seen(state: SequenceState) -> list[float]:
    keys, _ = state.kv(0).append(torch.zeros(1, 0, 1), torch.zeros(1, 0, 1), None)
    return [float(key) for key in keys.flatten()]


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_step_that_is_taken_back_leaves_no_trace(recurrent):
    state, other = SequenceState(), SequenceState()
    push(state, [1, 2, 3], recurrent)
    before = state.snapshot(3)
    push(state, [8, 9], recurrent)
    assert state.rollback(before)
    push(state, [4], recurrent)
    push(other, [1, 2, 3, 4], recurrent)
    assert seen(state) == seen(other)
    if recurrent:
        assert state.layer(1, Running).sum == other.layer(1, Running).sum


def test_without_a_copy_a_recurrent_layer_goes_nowhere_and_the_others_stay_with_it():
    state = SequenceState()
    push(state, [1, 2, 3], recurrent=True)
    assert not state.truncate(2)
    assert seen(state) == [1, 2, 3]
    assert state.layer(1, Running).tokens == 3
    assert state.truncate(3)


def test_keys_and_values_need_no_copies():
    state = SequenceState()
    push(state, [1, 2, 3], recurrent=False)
    assert state.snapshot(3).copies == {}
    push(state, [4], recurrent=True)
    assert set(state.snapshot(4).copies) == {1}


def test_memory_is_counted_over_all_layers():
    state = SequenceState()
    push(state, [1], recurrent=True)
    assert state.nbytes == state.kv(0).nbytes + 16
