"""Exact arithmetic, and how perplexities are compared, in benchmarks."""

import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import dali
from dali.hooks.seam import dali_layer, experts_modules
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.kernels.packing import QUANTIZERS
from dali.kernels.reference import compute_experts, reduce_choices


@pytest.fixture(autouse=True, scope="module")
def _benchmarks():
    added = [str(Path(__file__).parents[2] / "benchmarks" / folder) for folder in ("models", "tools")]
    sys.path += added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *QUANTIZERS])
def test_exact_experts_are_the_references(format):
    torch.manual_seed(0)
    layout = ExpertLayout(ExpertShape(64, 32, Activation("silu")), FORMATS[format])
    records = [torch.empty(layout.record_bytes, dtype=torch.uint8) for _ in range(4)]
    for record in records:
        layout.pack(ExpertWeights(torch.randn(32, 64), torch.randn(32, 64), torch.randn(64, 32)), record)
    hidden, weights = torch.randn(5, 64), torch.rand(5, 2)
    ids = torch.tensor([[0, 1], [3, 0], [1, 0], [0, 3], [3, 1]])  # nobody's is 2
    rows = torch.empty(10, 64)
    flat = ids.flatten()
    offsets = [0, *torch.bincount(flat, minlength=4).cumsum(0).tolist()]
    compute_experts(layout, records, offsets, flat.argsort(stable=True), hidden, rows)
    expected = reduce_choices(rows, weights)
    found = import_module("exact").ExactExperts(layout, records, torch.float64)(hidden.double(), ids, weights)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def test_an_exact_model_has_rounded_linears_and_its_own_embeddings(monkeypatch):
    exact = import_module("exact")
    monkeypatch.setenv(native.VARIABLE, "torch")
    plain, made = (dali.load(quant="w8", dtype="float32") for _ in range(2))
    exact.make_exact(made, FORMATS["w8"])
    assert torch.equal(made.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight)
    rounded = made.model.get_output_embeddings().weight - plain.model.get_output_embeddings().weight
    assert 0 < rounded.abs().max() < plain.model.get_output_embeddings().weight.abs().max() / 200
    layers = [dali_layer(module) for module in experts_modules(made.model).values()]
    assert all(type(layer) is exact.ExactExperts for layer in layers)
    ids = made.encode("Once upon a time")
    losses = [import_module("perplexity").losses(llm, ids) for llm in (plain, made)]
    assert losses[0].shape == losses[1].shape == (len(ids) - 1,)
    torch.testing.assert_close(losses[0], losses[1], rtol=0.1, atol=0.1)


def test_windows_miss_no_token_and_keep_their_order():
    llm = dali.load(ctx_size=4)
    ids = llm.encode("Once upon a time there was a dog.")
    found = import_module("perplexity").losses(llm, ids)
    assert len(found) == len(ids) - 1
    alone = [
        import_module("perplexity").losses(llm, ids[begin : begin + 4]) for begin in range(0, len(ids) - 1, 3)
    ]
    torch.testing.assert_close(found, torch.cat(alone))


def test_the_excess_is_of_perplexities_and_its_error_is_paired():
    excess = import_module("perplexity").excess
    base = torch.tensor([5.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    assert excess(base + 0.01, base) == pytest.approx((100 * (math.exp(0.01) - 1), 0), abs=1e-9)
    percent, error = excess(base + torch.tensor([0.1, -0.1, 0.1, -0.1]), base)
    assert percent == pytest.approx(0, abs=1e-5)
    assert error == pytest.approx(100 * math.sqrt(4 * 0.01 / 3) / 2, rel=1e-5)
