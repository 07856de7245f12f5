from __future__ import annotations

import torch

from dali.step.size import Reservation, StateSize
from dali.step.state import SequenceState

WINDOWS = [None, 5, None, 40]


def extend(state: SequenceState, count: int) -> None:
    for layer, window in enumerate(WINDOWS):
        new = torch.zeros(1 + layer, count, 2)
        state.kv(layer).append(new, new[:, :, :1], window)


def test_a_short_sequence_tells_what_any_other_takes():
    short = SequenceState()
    extend(short, 2)
    assert short.size == StateSize(((12, None), (24, 5), (36, None), (48, 40)))
    for tokens, chunk in ((1, 1), (30, 8), (300, 16), (1000, 1)):
        reservation, state = Reservation(tokens, chunk), SequenceState()
        state.reserve(reservation)
        for begin in range(0, tokens, chunk):
            extend(state, min(chunk, tokens - begin))
            assert state.nbytes == short.size.nbytes(reservation)
        assert max(state.kv(layer).nbytes for layer in range(4)) == short.size.moving(reservation)


def test_windows_do_not_grow_with_the_context():
    size = StateSize(((10, 128), (10, None)))
    grown = size.nbytes(Reservation(100_000, 512)) - size.nbytes(Reservation(50_000, 512))
    assert grown == 10 * 50_000


def test_what_does_not_grow_is_counted_apart():
    size = StateSize(((12, None), (24, None)), 77)
    assert size.nbytes(Reservation(2, 1)) == 2 * (12 + 24) + 77
    assert size.moving(Reservation(2, 1)) == 48


def test_a_state_begun_anew_has_the_same_reservation():
    state = SequenceState()
    state.reserve(Reservation(70, 8))
    extend(state, 3)
    anew = state.anew()
    extend(anew, 1)
    assert anew.nbytes == state.nbytes
