"""A sequence's state as the engine uses it: layers that can be cut back beside one that overwrites what it keeps."""

from __future__ import annotations

import pytest
import torch

from dali.step import state as module
from dali.step.recurrent import RecurrentState
from dali.step.state import SequenceState

CPU = torch.device("cpu")


def push(state: SequenceState, tokens: list[int], recurrent: bool) -> None:
    """A step with these tokens: each is a key and a value, and a recurrent layer's one number is 3 times itself plus each."""
    rows = torch.tensor(tokens, dtype=torch.float32)[None, :, None]
    state.kv(0).append(rows, rows, None)
    if not recurrent:
        return
    layer = state.layer(1, RecurrentState)
    before, after, copies = layer.advance(len(tokens), state.places, (1,), torch.float64, CPU)
    number = float(before)
    for at, token in enumerate(tokens):
        number = 3 * number + token
        for place, copy in copies:
            if place == at + 1:
                copy.fill_(number)
    after.fill_(number)


def seen(state: SequenceState) -> list[float]:
    keys, _ = state.kv(0).append(torch.zeros(1, 0, 1), torch.zeros(1, 0, 1), None)
    numbers = [float(tensor) for tensor in state.layer(1, RecurrentState).kept]
    return [float(key) for key in keys.flatten()] + numbers


def after(tokens: list[int], recurrent: bool = True) -> list[float]:
    state = SequenceState()
    push(state, tokens, recurrent)
    return seen(state)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_step_that_is_taken_back_leaves_no_trace(recurrent):
    state = SequenceState()
    push(state, [1, 2, 3], recurrent)
    push(state, [8, 9], recurrent)
    assert state.rollback(3)
    push(state, [4], recurrent)
    assert seen(state) == after([1, 2, 3, 4], recurrent)


def test_a_first_step_can_be_taken_back_too():
    state = SequenceState()
    push(state, [8, 9], recurrent=True)
    assert state.rollback(0)
    push(state, [4], recurrent=True)
    assert seen(state) == after([4])


def test_layers_that_an_interrupted_step_did_not_reach_stay_with_the_others():
    state = SequenceState()
    push(state, [1, 2], recurrent=True)
    push(state, [3], recurrent=False)
    assert state.rollback(2)
    assert seen(state) == after([1, 2])


def test_without_a_copy_a_recurrent_layer_goes_one_step_back_and_no_further():
    state = SequenceState()
    push(state, [1, 2], recurrent=True)
    push(state, [3], recurrent=True)
    push(state, [4], recurrent=True)
    assert not state.rollback(2)
    assert seen(state) == after([1, 2, 3, 4])
    assert state.nearest(2) is None
    assert state.rollback(3)
    assert not state.rollback(2)  # what the step before read is overwritten by now


@pytest.mark.parametrize("steps", [[5], [1, 4], [2, 3], [3, 2], [1, 1, 1, 1, 1]])
def test_copies_are_taken_wherever_a_step_begins_or_comes_by(steps):
    state, tokens = SequenceState(), [5, 6, 7, 8, 9]
    state.keep([2, 4])
    for count in steps:
        push(state, tokens[:count], recurrent=True)
        tokens = tokens[count:]
    push(state, [10], recurrent=True)
    push(state, [11], recurrent=True)
    assert [state.nearest(place) for place in (7, 5, 4, 3, 2, 1)] == [7, 4, 4, 2, 2, None]
    assert state.rollback(4)
    assert seen(state) == after([5, 6, 7, 8])
    push(state, [1], recurrent=True)
    push(state, [2], recurrent=True)
    assert seen(state) == after([5, 6, 7, 8, 1, 2])
    assert state.rollback(2)
    assert seen(state) == after([5, 6])


def test_copies_of_tokens_that_are_gone_are_gone():
    state = SequenceState()
    state.keep([1, 3])
    push(state, [1, 2, 3, 4], recurrent=True)
    push(state, [5], recurrent=True)
    assert state.rollback(1)
    push(state, [7, 7, 7, 7], recurrent=True)
    push(state, [7], recurrent=True)
    assert state.nearest(3) == 1


def test_keys_and_values_need_no_copies():
    state = SequenceState()
    push(state, [1, 2, 3], recurrent=False)
    assert state.nearest(2) == 2
    assert state.rollback(2)


def test_places_are_few_and_the_last_ones(monkeypatch):
    state = SequenceState()
    state.keep(range(1, 10))
    assert state.places == [6, 7, 8, 9]
    push(state, list(range(10)), recurrent=True)
    before = state.nbytes
    monkeypatch.setattr(module, "MOST_COPIED_BYTES", 8)
    state.keep([10])
    assert state.places == [9, 10]
    assert state.nbytes == before - 3 * 8


def test_the_most_memory_counts_all_copies_once():
    state = SequenceState()
    push(state, [1], recurrent=True)
    assert state.size.fixed == (2 + module.MOST_PLACES) * 8


def test_memory_is_counted_over_all_layers():
    state = SequenceState()
    push(state, [1], recurrent=True)
    assert state.nbytes == state.kv(0).nbytes + 2 * 8
