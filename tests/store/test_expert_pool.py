"""The pool: what it says about its experts, and what a lease holds."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.store.expert_pool import ExpertPool

SHAPE = ExpertShape(32, 16, Activation("silu"))
LAYOUTS = [ExpertLayout(SHAPE, get_format(name)) for name in ("w8", "w4")]
EXPERTS = 3


def records() -> list[list[Tensor]]:
    return [
        [torch.full((layout.record_bytes,), expert, dtype=torch.uint8) for expert in range(EXPERTS)]
        for layout in LAYOUTS
    ]


@pytest.fixture
def pool(monkeypatch) -> ExpertPool:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    return ExpertPool(LAYOUTS, records())


def test_it_knows_its_sizes(pool):
    assert (pool.layers, pool.experts) == (2, EXPERTS)
    assert pool.nbytes == EXPERTS * sum(layout.record_bytes for layout in LAYOUTS)
    assert pool.whole_layers


@pytest.mark.parametrize("ids", [[], [1], [2, 0], (0, 1, 2)])
def test_a_lease_holds_what_was_asked_for_in_that_order(pool, ids):
    lease = pool.lease(1, ids)
    assert lease.layout is LAYOUTS[1]
    assert [int(record[0]) for record in lease.records] == list(ids)
    assert all(len(record) == LAYOUTS[1].record_bytes for record in lease.records)
    assert lease.native is None


def test_a_lease_of_a_layer_holds_all_of_it_and_is_made_once(pool):
    lease = pool.lease(0)
    assert [int(record[0]) for record in lease.records] == [0, 1, 2]
    assert pool.lease(0) is lease
    assert (lease.native is not None) == native.AVAILABLE


def test_without_compiled_kernels_no_lease_has_their_handle(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    assert ExpertPool(LAYOUTS, records()).lease(0).native is None


def test_what_is_leased_outlives_the_pool():
    experts = ExpertPool(LAYOUTS, records())
    lease, gone = experts.lease(0, [2]), weakref.ref(experts)
    del experts
    gc.collect()
    assert gone() is None
    assert (lease.records[0] == 2).all()
