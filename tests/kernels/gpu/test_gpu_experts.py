"""The GPU's expert kernels, run by a stand-in for a warp: the same bits as the CPU's compiled kernels."""

from __future__ import annotations

import pytest
import shimmed
import torch

from dali.kernels import native
from dali.kernels.activation import CLAMPED, KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, get_format
from kernels.packed import random_records

EXPERTS = 6
# Every format once, floats apart; the last ones again where three are not left.
TRIPLES = [tuple(FORMATS)[min(first, len(FORMATS) - 3) :][:3] for first in range(0, len(FORMATS), 3)]


def random_layout(shape: ExpertShape, formats: tuple[str, ...]) -> ExpertLayout:
    """Gate in the first format, down in the last, up in the one between."""
    gate, up, down = formats if len(formats) == 3 else (formats[0], *formats)
    every = {"gate": get_format(gate), "up": get_format(up), "down": get_format(down)}
    return ExpertLayout.mixed(shape, {name: every[name] for name in shape.matrices})


def differing(
    layout: ExpertLayout, folder, tokens: int, top_k: int, seed: int, dtype=torch.float32, scale=3.0
) -> int:
    """Outputs that differ from the CPU's in any bit."""
    generator = torch.Generator().manual_seed(seed)
    arena = random_records(layout, EXPERTS, seed)
    x = (torch.randn(tokens, layout.shape.hidden, generator=generator) * scale).to(dtype)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:top_k] for _ in range(tokens)]).flatten()
    order = torch.randperm(EXPERTS, generator=generator).tolist()  # experts without a token among them
    pairs = torch.cat([(ids == expert).nonzero().flatten() for expert in order])
    offsets = [0, *torch.stack([(ids == expert).sum() for expert in order]).cumsum(0).tolist()]
    rows = [torch.full((tokens * top_k, layout.shape.hidden), float("nan")) for _ in range(2)]
    records = [arena[expert] for expert in order]
    native.compute_experts(layout, records, offsets, pairs, x, rows[0])
    shimmed.compute_experts(
        shimmed.build(layout, folder, 2 if tokens > 8 else 1), layout, records, offsets, pairs, x, rows[1]
    )
    nan = rows[0].isnan() & rows[1].isnan()
    return int(((rows[0].view(torch.int32) != rows[1].view(torch.int32)) & ~nan).sum())


@pytest.mark.parametrize("formats", TRIPLES, ids="-".join)
def test_every_format_gives_the_cpus_bits(formats, folder):
    layout = random_layout(ExpertShape(256, 96, Activation("silu")), formats)
    assert differing(layout, folder, 9, 2, 1) == 0


@pytest.mark.parametrize("formats", [("w8", "w4", "mxfp4"), ("q5k", "q2k", "q6k")], ids="-".join)
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 4), (3, 1), (20, 3), (64, 4)])
def test_any_number_of_tokens(formats, tokens, top_k, folder):
    layout = random_layout(ExpertShape(256, 96, Activation("silu")), formats)
    assert differing(layout, folder, tokens, top_k, tokens) == 0


@pytest.mark.parametrize("formats", [("w4", "f16"), ("bf16", "w8")], ids="-".join)
def test_matrices_may_be_integers_and_floats(formats, folder):
    assert differing(random_layout(ExpertShape(256, 96, Activation("silu")), formats), folder, 5, 3, 1) == 0


@pytest.mark.parametrize(("hidden", "intermediate"), [(40, 40), (33, 17), (72, 130), (300, 48)])
@pytest.mark.parametrize("format", ["w4", "q4k", "bf16"])
def test_odd_sizes(format, hidden, intermediate, folder):
    layout = random_layout(ExpertShape(hidden, intermediate, Activation("silu")), (format, format))
    assert differing(layout, folder, 5, 2, 2) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gated", [True, False])
def test_activations_with_and_without_gate_and_biases(kind, gated, folder):
    if kind in CLAMPED and not gated:
        pytest.skip("it has a gate")
    activation = Activation(kind, 1.702, 7.0) if kind in CLAMPED else Activation(kind)
    layout = random_layout(ExpertShape(64, 48, activation, gated, biased=True), ("w8", "w8"))
    assert differing(layout, folder, 6, 2, 3, scale=9.0) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_16_bits(dtype, folder):
    layout = random_layout(ExpertShape(64, 96, Activation("silu")), ("w4", "w4"))
    assert differing(layout, folder, 4, 2, 4, dtype) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e-41, -1e-30, 3e38])
@pytest.mark.parametrize("format", ["w4", "q4k", "q2k"])
def test_numbers_at_the_edges(format, value, folder):
    layout = random_layout(ExpertShape(256, 96, Activation("silu")), (format, format))
    generator = torch.Generator().manual_seed(5)
    arena = random_records(layout, EXPERTS, 5)
    x = torch.randn(3, 256, generator=generator)
    x[1, 40:80] = value
    pairs, offsets = torch.arange(3), [0, 2, 3]
    rows = [torch.zeros(3, 256) for _ in range(2)]
    native.compute_experts(layout, [arena[0], arena[1]], offsets, pairs, x, rows[0])
    shimmed.compute_experts(
        shimmed.build(layout, folder), layout, [arena[0], arena[1]], offsets, pairs, x, rows[1]
    )
    assert torch.equal(rows[0].isnan(), rows[1].isnan())
    kept = ~rows[0].isnan()
    assert torch.equal(rows[0][kept].view(torch.int32), rows[1][kept].view(torch.int32))
