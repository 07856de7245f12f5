"""Short convolutions and delta rules: right, and the same bits however a sequence is cut and whoever shares the step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from dali.kernels import native, recurrence

TOKENS = 23
KERNELS = [recurrence] + ([native] if native.AVAILABLE else [])
kernels = pytest.mark.parametrize("kernels", KERNELS, ids=lambda module: module.__name__.rpartition(".")[2])
# Tokens of two sequences, side by side, in the steps in which they come.
CUTS = [[(TOKENS, 9)], [(1, 1)] * 9 + [(TOKENS - 9, 0)], [(2, 0), (11, 3), (0, 6), (TOKENS - 13, 0)]]


def stepped(call, states: list[torch.Tensor], cuts: list[tuple[int, int]], rows: list[torch.Tensor]):
    """Both sequences' outputs, of rows each, cut like that; `call` gets the step's rows and stretches."""
    done, out = [0, 0], [[], []]
    buffers = [[state.clone(), torch.full_like(state, torch.nan)] for state in states]
    for counts in cuts:
        stretches, parts, begin = [], [], 0
        for which, count in enumerate(counts):
            if count:
                stretches.append((slice(begin, begin + count), *buffers[which], []))
                parts.append((which, [part[done[which] : done[which] + count] for part in rows[which]]))
                begin += count
        joined = [torch.cat(some) for some in zip(*(part for _, part in parts), strict=True)]
        result = call(joined, stretches)
        for (which, _), (span, *_) in zip(parts, stretches, strict=True):
            done[which] += span.stop - span.start
            out[which].append(result[span])
            buffers[which].reverse()
    return [torch.cat(pieces) for pieces in out], [buffer[0] for buffer in buffers]


def convolved(kernels, cuts, dtype=torch.float32, channels=200, width=4, bias=True, activation="silu"):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, width, generator=generator)
    offset = torch.randn(channels, generator=generator) if bias else None
    rows = [[torch.randn(n, channels, generator=generator).to(dtype)] for n in (TOKENS, 9)]
    states = [torch.zeros(width - 1, channels, dtype=dtype) for _ in rows]

    def call(parts, stretches):
        out = torch.empty_like(parts[0])
        kernels.convolve(parts[0], weight, offset, activation, stretches, out)
        return out

    return rows, weight, offset, *stepped(call, states, cuts, rows)


@kernels
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_torchs(kernels, bias, activation):
    rows, weight, offset, out, states = convolved(kernels, CUTS[0], bias=bias, activation=activation)
    for (x,), found, state in zip(rows, out, states, strict=True):
        expected = F.conv1d(x.T[None], weight[:, None], offset, padding=3, groups=len(weight))
        expected = expected[0, :, : len(x)].T
        torch.testing.assert_close(found, F.silu(expected) if activation else expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(state, x[-3:])


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_does_not_depend_on_cuts(kernels, dtype):
    activation = None if kernels is recurrence else "silu"  # torch's own rounds by place
    *_, whole, states = convolved(kernels, CUTS[0], dtype, activation=activation)
    for cuts in CUTS[1:]:
        *_, out, after = convolved(kernels, cuts, dtype, activation=activation)
        assert all(map(torch.equal, out, whole))
        assert all(map(torch.equal, after, states))


def ruled(kernels, cuts, key_heads=2, heads=4, key_width=24, value_width=40, by_channel=False):
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = []
    for n in (TOKENS, 9):
        decay = -some(n, heads, key_width).abs() if by_channel else -some(n, heads).abs()
        keys = some(n, key_heads, key_width), some(n, key_heads, key_width)
        rows.append([*keys, some(n, heads, value_width), decay, some(n, heads).sigmoid()])
    states = [some(heads, key_width, value_width) for _ in rows]

    def call(parts, stretches):
        out = torch.empty_like(parts[2])
        kernels.delta_rule(*parts, True, stretches, out)
        return out

    return rows, states, *stepped(call, states, cuts, rows)


@kernels
@pytest.mark.parametrize("sizes", [{}, {"value_width": 64}, {"heads": 2, "value_width": 8, "key_width": 7}])
def test_the_delta_rule_is_transformers(kernels, sizes):
    rows, begun, out, states = ruled(kernels, CUTS[0], **sizes)
    for parts, before, found, state in zip(rows, begun, out, states, strict=True):
        query, key, value, decay, beta = (part[None] for part in parts)
        # Older transformers want a head of keys for each of values.
        query, key = (part.repeat_interleave(value.shape[2] // part.shape[2], 2) for part in (query, key))
        expected, after = qwen3_next.torch_recurrent_gated_delta_rule(
            query, key, value, decay, beta, before[None], True, use_qk_l2norm_in_kernel=True
        )
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, after[0], rtol=1e-4, atol=1e-5)


@kernels
def test_with_a_decay_a_channel_it_is_transformers(kernels):
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    rows, begun, out, states = ruled(kernels, CUTS[0], key_heads=4, by_channel=True)
    for parts, before, found, state in zip(rows, begun, out, states, strict=True):
        expected, after = kimi.recurrent_kimi_delta_attention(
            *(part[None] for part in parts), before[None], True, use_qk_l2norm_in_kernel=True
        )
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, after[0], rtol=1e-4, atol=1e-5)


@kernels
@pytest.mark.parametrize("by_channel", [False, True])
def test_the_delta_rule_does_not_depend_on_cuts(kernels, by_channel):
    *_, whole, states = ruled(kernels, CUTS[0], by_channel=by_channel)
    for cuts in CUTS[1:]:
        *_, out, after = ruled(kernels, cuts, by_channel=by_channel)
        assert all(map(torch.equal, out, whole))
        assert all(map(torch.equal, after, states))


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
def test_every_instruction_set_and_any_threads_give_the_same_bits():
    before, threads = native.variant(), native.threads()
    *_, convolution, _ = convolved(native, CUTS[0])
    *_, whole, _ = ruled(native, CUTS[0])
    try:
        for name in native.variants():
            native.use(name)
            for count in (1, 3):
                native.set_threads(count)
                assert all(map(torch.equal, convolved(native, CUTS[0])[-2], convolution))
                assert all(map(torch.equal, ruled(native, CUTS[0])[-2], whole))
    finally:
        native.use(before)
        native.set_threads(threads)
