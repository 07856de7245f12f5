"""What is kept of a state: another that goes on from it is as the first was there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dali.step.kept import ALIGNMENT, Kept, gather
from dali.step.recurrent import RecurrentState
from dali.step.size import Reservation
from dali.step.state import SequenceState

CPU = torch.device("cpu")
WINDOW = 5


@torch.inference_mode()
def push(state: SequenceState, tokens: list[int]) -> None:
    """A step: layer 0 sees all tokens, layer 1 a window, layer 2 adds them up."""
    rows = torch.tensor(tokens, dtype=torch.float32)[None, :, None]
    state.kv(0).append(rows, rows.expand(1, -1, 3), None)
    state.kv(1).append(rows.half(), rows[..., :0], WINDOW)
    before, after, copies = state.layer(2, RecurrentState).advance(
        len(tokens), state.places, (1,), rows.dtype, CPU
    )
    for at, copy in copies:
        copy.copy_(before + sum(tokens[:at]))
    after.copy_(before + sum(tokens))


def seen(state: SequenceState, end: int) -> list[Any]:
    """All that a token after the first `end` would see, and the sum."""
    first = max(0, end - WINDOW + 1)
    pairs = state.kv(0).of(0, end), state.kv(1).of(first, end)
    return [part.tolist() for pair in pairs for part in pair or ()] + [
        state.layer(2, RecurrentState).kept[0].tolist()
    ]


def run(tokens: list[int], steps: int, places: tuple[int, ...] = ()) -> SequenceState:
    state = SequenceState()
    for begin in range(0, len(tokens), steps):
        state.keep(places)
        push(state, tokens[begin : begin + steps])
    return state


@pytest.mark.parametrize("steps", [1, 3, 300])
@pytest.mark.parametrize("place", [1, 4, 5, 6, 20, 290])
@pytest.mark.parametrize("reservation", [None, Reservation(400, 300)])
def test_who_goes_on_from_a_place_is_as_if_it_had_seen_all(steps, place, reservation):
    tokens = list(range(1, 301))
    kept: list[tuple[int, Kept]] = []
    state, stretch = SequenceState(), 5
    for begin in range(0, place, steps):
        state.keep([place])
        push(state, tokens[begin : begin + steps])
        while len(kept) * stretch < min(begin + steps, place):
            first = len(kept) * stretch
            last = min(first + stretch, place)
            if last > begin + steps:
                break
            found = state.kept_of(first, last, with_states=last == place)
            assert found is not None
            kept.append((first, found))
    other = SequenceState()
    if reservation is not None:
        other.reserve(reservation)
    other.resume(place, kept, 310, CPU)
    assert seen(other, place) == seen(run(tokens[:place], 300), place)
    push(state.anew(), tokens)  # what happens to others later changes nothing
    for token in tokens[place : place + 30]:
        push(other, [token])
    end = min(place + 30, len(tokens))
    assert seen(other, end) == seen(run(tokens[:end], 300), end)


def test_only_what_a_place_needs_of_a_longer_stretch_is_taken():
    state = run(list(range(1, 41)), 40)
    whole = state.kept_of(0, 40, with_states=False)
    assert whole is not None
    other = SequenceState()
    other.resume(23, [(0, whole)], 40, CPU)
    first = other.kv(0).of(0, 23)
    assert first is not None
    assert first[0].flatten().tolist() == list(range(1, 24))
    assert other.kv(1).first == 23 - WINDOW + 1


def test_what_is_not_there_any_longer_is_not_kept():
    state = run(list(range(1, 301)), 1)
    assert state.kept_of(0, 5, with_states=False) is None  # the window has moved on
    assert state.kept_of(296, 299, with_states=True) is not None  # where the last step began
    assert state.kept_of(296, 298, with_states=True) is None  # no copy was made
    assert state.kept_of(296, 301, with_states=False) is None  # not yet computed


def test_copies_are_the_state_s_no_longer():
    state = run(list(range(1, 11)), 10)
    kept = state.kept_of(5, 10, with_states=True)
    assert kept is not None
    before = [tensor.clone() for tensor in kept.tensors]
    state.rollback(10)
    with torch.inference_mode():
        for layer in state.kept:
            layer.fill_(99)
    assert all(map(torch.equal, before, kept.tensors))
    assert kept.nbytes == 5 * 4 * 4 + 5 * 2 + 4


def test_small_pieces_share_a_buffer():
    pieces = [torch.arange(3.0), torch.zeros(2, 0), torch.arange(4).bfloat16().reshape(2, 2)]
    copies = gather(pieces)
    assert all(map(torch.equal, copies, pieces))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert all(copy.data_ptr() % ALIGNMENT == 0 for copy in copies)


def test_more_places_may_be_passed_in_a_step_than_stay():
    state = run(list(range(1, 3)), 1)
    state.keep(range(3, 12), passing=True)
    push(state, list(range(3, 20)))
    assert all(state.layer(2, RecurrentState).at(place) is not None for place in range(3, 12))
    state.keep([])
    assert [place for place in range(3, 12) if state.layer(2, RecurrentState).at(place) is not None] == [
        8,
        9,
        10,
        11,
    ]
