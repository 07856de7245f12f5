"""Decoding attention in the native kernels against torch's, and beside other sequences."""

from __future__ import annotations

import pytest
import torch

from dali.hooks.attention import _attention_forward
from dali.kernels import native
from dali.step.context import Segment, StepContext, running
from dali.step.state import SequenceState

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


class Layer:
    layer_idx = 0


def decode(lengths, heads, kv_heads, widths, dtype, window=None, sinks=None, native_kernels=True):
    """One decoding step of sequences of `lengths` tokens so far: [tokens, heads, value width]."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    segments = []
    for row, length in enumerate(lengths):
        state = SequenceState()
        if length:
            state.kv(0).append(noise(kv_heads, length, widths[0]), noise(kv_heads, length, widths[1]), window)
        segments.append(Segment(state, row, 1, length, False))
    tokens = len(lengths)
    query = noise(1, tokens, heads, widths[0]).transpose(1, 2)  # as models hand them over: a view
    key = noise(1, tokens, kv_heads, widths[0]).transpose(1, 2)
    value = noise(1, tokens, kv_heads, widths[1]).transpose(1, 2)
    with torch.inference_mode(), running(StepContext(segments, max(lengths) + 1, native_kernels)):
        out, _ = _attention_forward(
            Layer(),
            query,
            key,
            value,
            None,
            sliding_window=window,
            s_aux=sinks,  # type: ignore[arg-type]
        )
    return out[0], [segment.state.kv(0).length for segment in segments]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("widths", [(64, 64), (24, 12), (20, 36)])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_decoding_agrees_with_torch(dtype, heads, widths, window, with_sinks):
    lengths = [0, 3, 130, 200]
    sinks = torch.linspace(-1, 2, heads[0]).to(dtype) if with_sinks else None
    attended, kept = decode(lengths, *heads, widths, dtype, window, sinks)
    expected, kept_by_torch = decode(lengths, *heads, widths, dtype, window, sinks, native_kernels=False)
    assert kept == kept_by_torch
    torch.testing.assert_close(attended, expected, rtol=0, atol=TOLERANCE[dtype])


def test_threads_change_no_bit():
    before = native.threads()
    outs = []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            outs.append(decode([300, 7, 90], 4, 2, (64, 64), torch.bfloat16)[0])
    finally:
        native.set_threads(before)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_nan_in_a_query_stays_in_its_sequence():
    out = torch.zeros(2, 2, 32)
    kept = [(torch.zeros(2, 8, 32), torch.zeros(2, 8, 32)) for _ in range(2)]
    query = torch.randn(2, 2, 32)
    query[:, 0] = torch.nan
    tokens = [(row, k.data_ptr(), v.data_ptr(), 8, 0, 0, False) for row, (k, v) in enumerate(kept)]
    native.attend(query, torch.randn(2, 2, 32), torch.randn(2, 2, 32), tokens, 0.1, None, out)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
