"""One expert's record: where its parts lie, and that they come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.errors import DaliError
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.kernels.packing import QUANTIZERS, pack, unpack

shapes = st.builds(
    ExpertShape,
    hidden=st.integers(1, 100),
    intermediate=st.integers(1, 100),
    activation=st.just(Activation("silu")),
    gated=st.booleans(),
    biased=st.booleans(),
)


def random_weights(shape: ExpertShape) -> ExpertWeights:
    parts = dict.fromkeys(("gate", "up", "down"))
    for name, (rows, columns) in shape.matrices.items():
        parts[name] = torch.randn(rows, columns)
        if shape.biased:
            parts[f"{name}_bias"] = torch.randn(rows)
    return ExpertWeights(**parts)


@given(shape=shapes, format=st.sampled_from([FORMATS[name] for name in ("f32", "f16", "bf16", *QUANTIZERS)]))
@settings(deadline=None, max_examples=100)
def test_parts_are_aligned_and_apart(shape, format):
    layout = ExpertLayout(shape, format)
    end = 0
    for name, (offset, size) in layout.offsets.items():
        assert offset % 128 == 0, name
        assert offset >= end, name
        end = offset + size
    assert layout.record_bytes % 4096 == 0
    assert end <= layout.record_bytes < end + 4096
    assert layout.weight_bytes == sum(size for _, size in layout.offsets.values()) <= layout.record_bytes
    weights = vars(random_weights(shape)).values()
    assert shape.parameters == sum(part.numel() for part in weights if part is not None)


@given(shape=shapes, format=st.sampled_from([FORMATS[name] for name in ("f32", "f16", "bf16", *QUANTIZERS)]))
@settings(deadline=None, max_examples=60)
def test_records_come_back(shape, format):
    layout, weights = ExpertLayout(shape, format), random_weights(shape)
    record = torch.full((layout.record_bytes,), 255, dtype=torch.uint8)
    layout.pack(weights, record)
    again = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.pack(weights, again)
    assert torch.equal(record, again)  # padding too: equal weights are equal bytes
    unpacked = layout.unpack(record)
    for name, part in vars(weights).items():
        found = getattr(unpacked, name)
        if part is None:
            assert found is None
        elif part.dim() == 1:
            assert torch.equal(found, part)
        else:
            assert torch.equal(layout.part(record, name), pack(part, format))
            torch.testing.assert_close(found, part, rtol=0, atol=0 if format.bits == 32 else 1.0)


def test_part_is_a_view():
    layout = ExpertLayout(ExpertShape(32, 16, Activation("silu"), biased=True), FORMATS["f32"])
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.part(record, "down_bias").view(torch.float32)[3] = 5
    assert layout.unpack(record).down_bias[3] == 5


@pytest.mark.parametrize("name", ["gate", "up", "down", "gate_bias", "up_bias", "down_bias"])
def test_values_that_are_not_finite_are_refused_in_every_part(name):
    layout = ExpertLayout(ExpertShape(40, 24, Activation("silu"), biased=True), FORMATS["w8"])
    weights = random_weights(layout.shape)
    getattr(weights, name).view(-1)[5] = float("nan")
    with pytest.raises(DaliError, match="NaN"):
        layout.pack(weights, torch.empty(layout.record_bytes, dtype=torch.uint8))


def test_a_format_for_each_matrix():
    shape = ExpertShape(64, 32, Activation("silu"), biased=True)
    formats = {"gate": FORMATS["w4"], "up": FORMATS["w4"], "down": FORMATS["w8"]}
    layout = ExpertLayout.mixed(shape, formats)
    assert (layout.formats, layout.format_name) == (formats, "w4 (down w8)")
    assert ExpertLayout.mixed(shape, dict.fromkeys(formats, FORMATS["w8"])) == ExpertLayout(
        shape, FORMATS["w8"]
    )
    weights, record = random_weights(shape), torch.empty(layout.record_bytes, dtype=torch.uint8)
    layout.pack(weights, record)
    for name, format in formats.items():
        assert torch.equal(layout.part(record, name), pack(getattr(weights, name), format))
        rows, columns = shape.matrices[name]
        assert torch.equal(
            getattr(layout.unpack(record), name), unpack(layout.part(record, name), rows, columns, format)
        )
