"""A MoE layer's step: in one native call, by the reference kernels, and of a pool that leases no layer as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.store.expert_pool import ExpertPool, Lease
from dali.telemetry import Telemetry

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
EXPERTS, HIDDEN, TOP_K = 6, 64, 3


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)


class SparePool(ExpertPool):
    """Leases only the experts that are asked for, as one would that keeps the others on disk."""

    whole_layers = False

    def __init__(self, layouts: Sequence[ExpertLayout], records: Sequence[Sequence[Tensor]]) -> None:
        super().__init__(layouts, records)
        self.asked: list[list[int]] = []

    def lease(self, layer: int, ids: Sequence[int] | None = None) -> Lease:
        assert ids is not None
        self.asked.append(list(ids))
        return super().lease(layer, ids)


def packed() -> tuple[list[ExpertLayout], list[list[Tensor]]]:
    """One layer of experts."""
    torch.manual_seed(0)
    layout = ExpertLayout(ExpertShape(HIDDEN, 96, Activation("silu")), get_format("w8"))
    records = []
    for _ in range(EXPERTS):
        record = torch.empty(layout.record_bytes, dtype=torch.uint8)
        layout.pack(
            ExpertWeights(torch.randn(96, HIDDEN), torch.randn(96, HIDDEN), torch.randn(HIDDEN, 96)), record
        )
        records.append(record)
    return [layout], [records]


def layers() -> tuple[MoELayer, MoELayer]:
    """The same experts twice: compiled, and by the reference."""
    pool = ExpertPool(*packed())
    return MoELayer(0, pool, Telemetry()), MoELayer(0, pool, Telemetry(), arithmetic="int8")


@pytest.mark.parametrize("tokens", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_agrees_with_the_reference_and_counts_alike(tokens, dtype):
    compiled, reference = layers()
    hidden = torch.randn(tokens, HIDDEN).to(dtype)
    ids = (
        torch.stack([torch.randperm(EXPERTS - 1)[:TOP_K] for _ in range(tokens)])
        if tokens
        else torch.empty(0, TOP_K).long()
    )
    weights = torch.rand(tokens, TOP_K).to(dtype)
    out, expected = compiled(hidden, ids, weights), reference(hidden, ids, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=0.02)
    ours, theirs = compiled.telemetry.layer(0), reference.telemetry.layer(0)
    assert (ours.cpu, ours.expert_bytes, ours.routed_tokens) == (
        theirs.cpu,
        theirs.expert_bytes,
        theirs.routed_tokens,
    )
    for layer in (compiled, reference):
        assert layer.telemetry.workload.tolist() == [
            torch.bincount(ids.flatten(), minlength=EXPERTS).tolist()
        ]


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_an_expert_that_is_not_there_is_refused(wrong):
    compiled, _ = layers()
    with pytest.raises(IndexError, match="an expert that is not there"):
        compiled(torch.randn(1, HIDDEN), torch.tensor([[0, wrong, 1]]), torch.rand(1, TOP_K))


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_that_leases_no_whole_layer_is_asked_for_those_that_take_part_and_gives_the_same_bits(
    tokens, dtype
):
    whole, spare = ExpertPool(*packed()), SparePool(*packed())
    hidden = torch.randn(tokens, HIDDEN).to(dtype)
    ids = torch.stack([torch.randperm(EXPERTS - 1)[:TOP_K] for _ in range(tokens)])
    weights = torch.rand(tokens, TOP_K).to(dtype)
    one, other = MoELayer(0, whole, Telemetry()), MoELayer(0, spare, Telemetry())
    assert torch.equal(one(hidden, ids, weights), other(hidden, ids, weights))
    assert spare.asked == [sorted(set(ids.flatten().tolist()))]
    assert one.compiled
    assert not other.compiled


def as_doubles(hidden, ids, weights):
    return hidden.double(), ids, weights.double()


def with_weights_as_doubles(hidden, ids, weights):
    return hidden, ids, weights.double()


def with_short_ids(hidden, ids, weights):
    return hidden, ids.int(), weights


@pytest.mark.parametrize("change", [as_doubles, with_weights_as_doubles, with_short_ids])
def test_what_the_compiled_kernels_do_not_take_is_computed_all_the_same(change):
    compiled, _ = layers()
    call = torch.randn(5, HIDDEN), torch.randint(EXPERTS, (5, TOP_K)), torch.rand(5, TOP_K)
    expected, out = compiled(*call), compiled(*change(*call))
    assert out.dtype == change(*call)[0].dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_an_expert_that_is_not_there_is_refused_from_a_spare_pool_too(wrong):
    layer = MoELayer(0, SparePool(*packed()), Telemetry())
    with pytest.raises(IndexError, match="an expert that is not there"):
        layer(torch.randn(1, HIDDEN), torch.tensor([[0, wrong, 1]]), torch.rand(1, TOP_K))
