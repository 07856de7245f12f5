from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.step.kv import LayerKV
from dali.step.size import Reservation
from dali.step.state import SequenceState


def tokens(begin: int, count: int) -> torch.Tensor:
    """One head of width 1 whose value is the position."""
    return torch.arange(begin, begin + count, dtype=torch.float32).view(1, count, 1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.sampled_from([None, 2, 7, 64]))
def test_every_position_a_query_can_see_is_kept_in_order(chunks, window):
    layer, position = LayerKV(), 0
    for chunk in chunks:
        keys, values = layer.append(tokens(position, chunk), -tokens(position, chunk), window)
        end = position + chunk
        first_seen = max(0, position - window + 1) if window else 0  # by the chunk's first query
        assert layer.first <= first_seen
        assert keys.flatten().tolist() == list(range(layer.first, end))
        assert torch.equal(values, -keys)
        position = end


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.sampled_from([None, 1, 2, 7, 64]))
def test_a_reservation_is_taken_at_once_and_never_exceeded(chunks, window):
    layer, reservation, position = LayerKV(), Reservation(sum(chunks), max(chunks)), 0
    layer.reserve(reservation)
    sizes = set()
    for chunk in chunks:
        keys, values = layer.append(tokens(position, chunk), -tokens(position, chunk), window)
        end = position + chunk
        assert layer.first <= (max(0, position - window + 1) if window else 0)
        assert keys.flatten().tolist() == list(range(layer.first, end))
        assert torch.equal(values, -keys)
        position = end
        sizes.add(layer.nbytes)
    assert sizes == {2 * 4 * reservation.capacity(window)}
    assert layer.token_bytes == 8


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("most", [40, 60, 100])
def test_another_reservation_moves_what_is_kept(window, most):
    layer = LayerKV()
    layer.reserve(Reservation(60, 10))
    for begin in range(0, 40, 10):
        layer.append(tokens(begin, 10), -tokens(begin, 10), window)
    first = layer.first
    layer.reserve(Reservation(most, 8))
    assert layer.nbytes == 8 * (most if window is None else 2 * 6 + 8)
    keys, values = layer.kept
    assert keys.flatten().tolist() == list(range(first, 40))
    assert torch.equal(values, -keys)
    place = layer.place(0, tokens(40, 1), tokens(40, 1), window)
    assert place[1:3] == tuple(buffer.data_ptr() for buffer in layer.kept)


def test_more_than_was_reserved_still_has_its_place():
    layer = LayerKV()
    layer.reserve(Reservation(10, 10))
    keys, _ = layer.append(tokens(0, 35), tokens(0, 35), None)
    assert keys.flatten().tolist() == list(range(35))


def test_a_window_bounds_the_memory():
    layer = LayerKV()
    for position in range(5000):
        layer.append(tokens(position, 1), tokens(position, 1), 16)
    assert layer.nbytes <= 2 * 4 * 128


def test_rollback_forgets_the_end():
    cache = SequenceState()
    cache.kv(0).append(tokens(0, 10), tokens(0, 10), None)
    assert cache.rollback(4)
    keys, _ = cache.kv(0).append(tokens(4, 1), tokens(4, 1), None)
    assert keys.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("target", "possible"), [(299, True), (260, True), (100, False)])
def test_rollback_behind_a_window_is_refused(target, possible):
    cache = SequenceState()
    for position in range(300):
        cache.kv(0).append(tokens(position, 1), tokens(position, 1), 8)
    length = cache.kv(0).length
    assert cache.rollback(target) is possible
    if not possible:
        assert cache.kv(0).length == length
