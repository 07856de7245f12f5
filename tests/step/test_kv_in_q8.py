"""Keys and values in 8 bits: how much they take, and that they move as they are."""

from __future__ import annotations

import pytest
import torch

from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.kept_rows import quantize
from dali.step.kv import LayerKV
from dali.step.size import Reservation
from dali.step.state import SequenceState

HEADS, WIDTHS, WINDOWS = 2, (64, 24), (None, 9)
A_TOKEN = HEADS * ((64 + 2 * 2) + (24 + 2))  # bytes


def test_torch_s_attention_is_refused():
    new = torch.zeros(1, 3, 32)
    with pytest.raises(DaliError, match="here torch computes attention"):
        LayerKV(in_q8=True).append(new, new, None)


def rows(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(HEADS, count, width, generator=generator) for width in WIDTHS]


def push(state: SequenceState, new: list[torch.Tensor]) -> None:
    """A step, of which only what it keeps counts."""
    count = new[0].shape[1]
    for layer, window in enumerate(WINDOWS):
        place = state.kv(layer).place(0, *new, window)
        out = torch.empty(count, HEADS, WIDTHS[1])
        native.attend_prompt(new[0], *new, place, count, window, 0.1, None, out)


def kept(state: SequenceState) -> list[torch.Tensor]:
    """All of the first layer's, and what the second's next token sees."""
    pairs = state.kv(0).of(0, 300), state.kv(1).of(292, 300)
    return [part for pair in pairs for part in pair or ()]


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("reservation", [None, Reservation(400, 7)])
def test_no_value_is_quantized_twice_however_it_moves(reservation):
    """Grown, compacted, copied, resumed and rolled back: the bytes stay those of each token's own values."""
    every, stretches = rows(300), []
    whole = [quantize(part) for part in every]
    expected = [*whole, *(part[:, 292:] for part in whole)]
    first, other = SequenceState(in_q8=True), SequenceState(in_q8=True)
    for state in (first, other) if reservation else ():
        state.reserve(reservation)
    for begin in range(0, 300, 7):
        push(first, [part[:, begin : begin + 7] for part in every])
        stretch = first.kept_of(begin, min(begin + 7, 300), with_states=False)
        assert stretch is not None
        stretches.append((begin, stretch))
    assert stretches[0][1].nbytes == 2 * 7 * A_TOKEN
    assert first.size.layers == ((A_TOKEN, None), (A_TOKEN, 9))
    assert all(map(torch.equal, kept(first), expected))
    other.resume(298, stretches, 400, torch.device("cpu"))
    push(other, [part[:, 298:] for part in every])
    assert other.rollback(299)
    push(other, [part[:, 299:] for part in every])
    assert all(map(torch.equal, kept(other), expected))
