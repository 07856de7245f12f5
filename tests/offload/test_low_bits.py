"""Experts of few bits: what is kept, and what cannot hold them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dali
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.kernels.packing import unpack
from dali.offload import low_bits
from dali.offload.low_bits import few_levels, low_precision, reduce_bits
from dali.progress import silent

SHAPE = ExpertShape(40, 24, Activation("silu"), biased=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(format: str, experts: int = 2) -> tuple[ExpertLayout, list[torch.Tensor]]:
    layout = ExpertLayout(SHAPE, get_format(format))
    records = [torch.empty(layout.record_bytes, dtype=torch.uint8) for _ in range(experts)]
    for seed, record in enumerate(records):
        matrices = (random(24, 40, seed=seed), random(24, 40, seed=seed + 7), random(40, 24, seed=seed + 9))
        layout.pack(ExpertWeights(*matrices, random(24), random(24), random(40)), record)
    return layout, records


@pytest.mark.parametrize("name", low_bits.HELD)
@settings(deadline=None, max_examples=25)
@given(
    bits=st.sampled_from([2, 3]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 80),
    seed=st.integers(0, 999),
    shift=st.sampled_from([-3.0, 0.0, 0.7]),
)
def test_each_group_has_so_many_levels_and_no_value_moves_far(name, bits, rows, columns, seed, shift):
    matrix = random(rows, columns, seed=seed) + shift
    format = get_format(name)
    found = unpack(few_levels(matrix, bits, format), rows, columns, format)
    for first in range(0, columns, 32):
        group, kept = matrix[:, first : first + 32], found[:, first : first + 32]
        step = (group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)) / (2**bits - 1)
        assert all(len(row.unique()) <= 2**bits for row in kept)
        # Half a step where nothing is clamped; the whole zero point shifts all levels by up to half a step more.
        assert ((group - kept).abs() <= 1.01 * step[:, None] + 1e-6).all()


def test_zeros_stay_zeros():
    format = get_format("w4")
    assert not unpack(few_levels(torch.zeros(3, 50), 2, format), 3, 50, format).any()


@pytest.mark.parametrize("format", low_bits.HELD)
def test_experts_are_rounded_in_place(format):
    layout, records = packed(format)
    before = [layout.unpack(record) for record in records]
    reduce_bits([layout], [records], 3, silent)
    for record, old in zip(records, before, strict=True):
        new = layout.unpack(record)
        for name in ("gate", "up", "down"):
            was, now = getattr(old, name), getattr(new, name)
            assert torch.equal(now, unpack(few_levels(was, 3, layout.format), *was.shape, layout.format))
            assert 0.05 < float((now - was).norm() / was.norm()) < 0.3
        assert torch.equal(new.up_bias, old.up_bias)


@pytest.mark.parametrize("format", ["bf16", "q4k", "mxfp4"])
def test_other_formats_cannot_hold_them(format):
    layout = ExpertLayout(SHAPE, get_format(format))
    with pytest.raises(dali.UsageError, match=rf"2 bits are stored in w4 or w8, .* {format}.\n.* quant w4"):
        reduce_bits([layout], [[]], 2, silent)


@pytest.mark.parametrize(("format", "levels"), [("bf16", 16), ("w8", 4), ("w4", 4)])
def test_a_low_precision_stands_beside_each_expert(format, levels):
    layout, records = packed(format)
    kept = [record.clone() for record in records]
    (low,), (copies,) = low_precision([layout], [records], None, silent)
    assert all(torch.equal(record, was) for record, was in zip(records, kept, strict=True))
    for record, copy in zip(records, copies, strict=True):
        full, less = layout.unpack(record), low.unpack(copy)
        assert 2 < len(less.up[0, :32].unique()) <= levels
        assert torch.equal(less.down_bias, full.down_bias)
        assert 0.02 < float((less.up - full.up).norm() / full.up.norm()) < 0.5


def test_without_memory_for_them_it_says_so(monkeypatch):
    layout, records = packed("w8")
    need = len(records) * ExpertLayout(SHAPE, get_format("w4")).record_bytes
    low_precision([layout], [records], need, silent)
    with pytest.raises(dali.DaliError) as error:
        low_precision([layout], [records], need - 1, silent)
    assert (
        error.value.problem
        == "Low-precision experts take 16.0 KiB more memory, and ram leaves 16.0 KiB for them."
    )
    assert error.value.fix == "Raise ram by 1 B, or leave out lossy."
    monkeypatch.setattr(low_bits, "available_ram", lambda: 1000)
    with pytest.raises(dali.DaliError) as error:
        low_precision([layout], [records], None, silent)
    assert error.value.problem == "Low-precision experts take 16.0 KiB more memory, and 1000 B are free."
    assert error.value.fix == "Close other programs, or leave out lossy."
