"""The reference kernels: against plain einsum, against integers in numpy, and alone against in a batch.

What holds of bit-identity: the int8 linears and the slot reduction are exact, whatever shares the batch. The
exact arithmetic is torch's matmul, whose last bits depend on the number of rows (1 to 3 rows take another
path), and torch's vectorised activations differ in the last bit at the end of a tensor; so there only
closeness is promised.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_expert import random_weights

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, disassemble
from dali.kernels.packing import QUANTIZERS
from dali.kernels.reference import (
    compute_experts,
    expert_ffn,
    quantize_activations,
    reduce_choices,
    to_half_precision,
)
from dali.kernels.values import integers

SILU, RELU2 = Activation("silu"), Activation("relu2")
CLAMPED = Activation("clamped_swiglu", 1.702, 7.0)


def packed(shape: ExpertShape, format: str, experts: int = 1, seed: int = 0):
    torch.manual_seed(seed)
    layout = ExpertLayout(shape, FORMATS[format])
    records = torch.empty(experts, layout.record_bytes, dtype=torch.uint8)
    for record in records:
        layout.pack(random_weights(shape), record)
    return layout, records


def route(ids: torch.Tensor, experts: int):
    """ids [tokens, top_k] -> slots and offsets as compute_experts takes them, one range an expert."""
    slots = [(ids.flatten() == expert).nonzero().flatten() for expert in range(experts)]
    offsets = np.cumsum([0, *map(len, slots)]).tolist()
    return torch.cat(slots), offsets


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *QUANTIZERS])
@pytest.mark.parametrize(
    "shape",
    [
        ExpertShape(64, 40, SILU),
        ExpertShape(33, 17, SILU, biased=True),
        ExpertShape(48, 24, CLAMPED, biased=True),
        ExpertShape(48, 24, RELU2, gated=False),
        ExpertShape(48, 24, Activation("gelu"), gated=False, biased=True),
    ],
    ids=["silu", "odd", "gpt-oss", "no gate", "no gate, bias"],
)
def test_experts_equal_einsum_on_dequantized_weights(shape, format):
    layout, records = packed(shape, format, experts=4)
    hidden = torch.randn(9, shape.hidden)
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(9)])
    rows = torch.empty(18, shape.hidden)
    slots, offsets = route(ids, 4)
    compute_experts(layout, list(records), offsets, slots, hidden, rows)

    stacked = {
        name: None
        if part is None
        else torch.stack([getattr(layout.unpack(record), name) for record in records])
        for name, part in vars(layout.unpack(records[0])).items()
    }

    def linear(name, x):  # every token through every expert
        out = torch.einsum("etc,erc->etr", x.double(), stacked[name].double())
        bias = stacked[f"{name}_bias"]
        return out if bias is None else out + bias[:, None]

    everything = hidden.expand(4, -1, -1)
    gate = linear("gate", everything) if shape.gated else None
    expected = linear("down", shape.activation(gate, linear("up", everything)))  # [experts, tokens, hidden]
    expected = expected[ids, torch.arange(9)[:, None]].flatten(0, 1).float()
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def int8_linear(layout, record, name, x):
    """The int8 arithmetic again, in numpy and true integers: [tokens, columns] -> [tokens, rows]."""
    rows, columns = layout.shape.matrices[name]
    read = disassemble(layout.part(record, name), rows, columns, layout.format)
    weights, scales, minima = integers(*read, layout.format)
    weights, scales = weights.numpy().astype(np.int32), scales.numpy()
    parts = np.split(np.arange(32), scales.shape[2])  # columns that share a scale
    x = np.pad(x, ((0, 0), (0, weights.shape[1] * 32 - columns))).reshape(len(x), -1, 32)
    largest = np.abs(x).max(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        activations = np.where(largest[..., None] > 0, x * (np.float32(127) / largest)[..., None], 0)
    activations = np.rint(activations).astype(np.int32)
    assert np.abs(activations).max(initial=0) <= 127
    out = np.zeros((len(x), rows), np.float32)
    for group in range(x.shape[1]):
        scale = (largest[:, group] / np.float32(127)).astype(np.float16).astype(np.float32)
        for part, some in enumerate(parts):
            dots = np.einsum("tc,rc->tr", activations[:, group, some], weights[:, group, some])
            out += dots.astype(np.float32) * (scale[:, None] * scales[:, group, part])
            if minima is not None:
                sums = activations[:, group, some].sum(-1).astype(np.float32)
                out -= (scale * sums)[:, None] * minima[:, group, part].numpy()
    if layout.shape.biased:
        out += layout.part(record, f"{name}_bias").view(torch.float32).numpy()
    return out


@pytest.mark.parametrize("format", ["w8", "w4", "mxfp4", "q4k", "q6k"])
@pytest.mark.parametrize("biased", [False, True])
@given(
    tokens=st.integers(1, 6),
    hidden=st.integers(1, 80),
    intermediate=st.integers(1, 80),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_int8_arithmetic_is_integer_arithmetic(format, biased, tokens, hidden, intermediate, seed):
    shape = ExpertShape(hidden, intermediate, RELU2, gated=False, biased=biased)
    layout, (record,) = packed(shape, format, seed=seed)
    x = torch.randn(tokens, hidden)
    x[0] = 0
    inner = np.square(np.maximum(int8_linear(layout, record, "up", x.numpy()), 0))
    expected = int8_linear(layout, record, "down", inner)
    assert np.array_equal(expert_ffn(layout, record, x, "int8").numpy(), expected)


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_float_formats_have_one_arithmetic(format):
    layout, (record,) = packed(ExpertShape(64, 40, SILU), format)
    x = torch.randn(5, 64)
    assert torch.equal(expert_ffn(layout, record, x, "int8"), expert_ffn(layout, record, x, "exact"))


@pytest.mark.parametrize("format", ["w8", "w4", "mxfp4", "q4k", "q6k"])
def test_int8_arithmetic_is_close_to_the_exact_one(format):
    layout, (record,) = packed(ExpertShape(256, 128, SILU), format)
    x = torch.randn(20, 256)
    exact = expert_ffn(layout, record, x)
    error = (expert_ffn(layout, record, x, "int8") - exact).norm() / exact.norm()
    assert 0 < error < 0.015  # 1.0 to 1.2 % on normal inputs, whatever the scale of the weights


def test_activations_are_rounded_half_to_even():
    x = torch.zeros(1, 40)
    x[0, :5] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5])
    quants, scales = quantize_activations(x)
    assert quants[0, 0, :5].tolist() == [127, 0, 2, 2, 0]
    assert scales.tolist() == [[1.0, 0.0]]


def test_scales_are_rounded_as_float16_does_it_and_never_overflow():
    values = torch.cat([torch.logspace(-9, 4.8, 5000), torch.tensor([0.0, 2.0**-24, 2.0**-25, 65504.0])])
    assert torch.equal(to_half_precision(values), values.to(torch.float16).to(torch.float32))
    assert to_half_precision(torch.tensor([3.0e38])).item() == pytest.approx(3.0e38, rel=2.0**-11)
    assert to_half_precision(torch.tensor([float("nan")])).isnan().all()


def test_tiny_activations_become_zero_not_nan():
    """127 / largest overflows below 4e-37."""
    x = torch.full((1, 32), 1e-38)
    x[0, 1] = 0
    quants, scales = quantize_activations(x)
    assert (quants == 0).all()
    assert scales.isfinite().all()


@pytest.mark.parametrize("arithmetic", ["exact", "int8"])
def test_no_tokens(arithmetic):
    layout, records = packed(ExpertShape(64, 40, SILU), "w8", experts=2)
    rows = torch.empty(0, 64)
    nothing = torch.empty(0, dtype=torch.long)
    compute_experts(layout, list(records), [0, 0, 0], nothing, torch.empty(0, 64), rows, arithmetic)
    assert expert_ffn(layout, records[0], torch.empty(0, 64), arithmetic).shape == (0, 64)
    assert reduce_choices(rows, torch.empty(0, 2)).shape == (0, 64)


def test_only_routed_slots_are_written():
    """An expert nobody routed to is not read: its record may be anything. Other rows keep what they hold."""
    layout, records = packed(ExpertShape(64, 40, SILU), "f32", experts=3)
    records[1] = 255  # NaN in every weight
    rows = torch.full((6, 64), -7.0)
    slots = torch.tensor([4, 1])  # token 2 slot 0 to expert 0, token 0 slot 1 to expert 2
    compute_experts(layout, list(records), [0, 1, 1, 2], slots, torch.randn(3, 64), rows)
    assert (rows[[0, 2, 3, 5]] == -7).all()
    assert rows[[1, 4]].isfinite().all()


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *QUANTIZERS])
@pytest.mark.parametrize("arithmetic", ["exact", "int8"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_token_poisons_only_its_own_rows(format, arithmetic, poison):
    layout, records = packed(ExpertShape(64, 40, SILU), format, experts=2)
    hidden = torch.randn(8, 64)
    ids = torch.tensor([[0, 1]]).repeat(8, 1)
    slots, offsets = route(ids, 2)
    clean, rows = torch.empty(16, 64), torch.empty(16, 64)
    compute_experts(layout, list(records), offsets, slots, hidden, clean, arithmetic)
    hidden[5, 40] = poison
    compute_experts(layout, list(records), offsets, slots, hidden, rows, arithmetic)
    others = [row for row in range(16) if row // 2 != 5]
    assert torch.equal(rows[others], clean[others])
    assert not rows[10:12].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_any_float_type_are_computed_in_float32(dtype):
    layout, (record,) = packed(ExpertShape(64, 40, SILU), "f32")
    hidden = torch.randn(4, 64, dtype=dtype)
    rows = torch.empty(4, 64)
    compute_experts(layout, [record], [0, 4], torch.arange(4), hidden, rows)
    assert torch.equal(rows, expert_ffn(layout, record, hidden.float()))


@pytest.mark.parametrize("format", ["w8", "w4", "mxfp4", "q4k", "q6k"])
@given(chosen=st.sets(st.integers(0, 39), min_size=1), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_int8_rows_do_not_depend_on_their_batch(format, chosen, seed):
    layout, (record,) = packed(ExpertShape(70, 50, RELU2, biased=True), format, seed=seed)
    hidden, chosen = torch.randn(40, 70), sorted(chosen)
    together = expert_ffn(layout, record, hidden, "int8")
    assert torch.equal(expert_ffn(layout, record, hidden[chosen], "int8"), together[chosen])


@given(chosen=st.sets(st.integers(0, 39), min_size=1), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_exact_rows_depend_on_their_batch_in_the_last_bits_only(chosen, seed):
    layout, (record,) = packed(ExpertShape(70, 50, SILU), "f32", seed=seed)
    hidden, chosen = torch.randn(40, 70), sorted(chosen)
    together = expert_ffn(layout, record, hidden)
    alone = expert_ffn(layout, record, hidden[chosen])
    torch.testing.assert_close(alone, together[chosen], rtol=0, atol=1e-5 * float(together.abs().max()))


def test_slots_are_summed_in_order():
    """Values whose sum depends on the order: only slot order gives 1."""
    rows = torch.tensor([[1e8], [-1e8], [1.0]]).repeat_interleave(2, dim=1)
    assert reduce_choices(rows, torch.ones(1, 3)).tolist() == [[1.0, 1.0]]
    assert reduce_choices(rows.roll(1, 0), torch.ones(1, 3)).tolist() == [[0.0, 0.0]]


@given(tokens=st.integers(1, 9), top_k=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_reduction_is_bit_equal_for_any_neighbours(tokens, top_k, seed):
    torch.manual_seed(seed)
    rows, weights = torch.randn(tokens, top_k, 37), torch.rand(tokens, top_k)
    found = reduce_choices(rows.flatten(0, 1), weights)
    expected = np.zeros((tokens, 37), np.float32)
    for slot in range(top_k):
        expected = expected + rows[:, slot].numpy() * weights[:, slot, None].numpy()
    assert np.array_equal(found.numpy(), expected)
    order = torch.randperm(tokens)
    assert torch.equal(reduce_choices(rows[order].flatten(0, 1), weights[order]), found[order])
    assert torch.equal(reduce_choices(rows[0], weights[:1])[0], found[0])


def test_reduction_weights_of_lower_precision():
    rows, weights = torch.randn(6, 8), torch.rand(3, 2, dtype=torch.bfloat16)
    assert torch.equal(reduce_choices(rows, weights), reduce_choices(rows, weights.float()))
