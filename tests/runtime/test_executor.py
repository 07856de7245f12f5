from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
from torch import Tensor

from dali.devices import Dependencies, Operation, SimDevice
from dali.hardware.cost import CostModel
from dali.hardware.profile import load
from dali.kernels.reference import compute_experts
from dali.policies.cache import CachePolicy, Swap
from dali.policies.plan import LayerPlan
from dali.runtime.executor import Executor
from runtime.tiny_runtime import (
    EXPERTS,
    HIDDEN,
    SIZE,
    TOP_K,
    Setting,
    inputs,
    tiny_executor,
    tiny_model,
)


class Order(Dependencies):
    """The operations in the order of issue."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []

    def derive(self, operation: Operation, reads: Set[int], writes: Set[int]) -> None:
        super().derive(operation, reads, writes)
        self.labels.append(operation.label)


class Fixed:
    """An assignment that is given."""

    def __init__(self, plan: LayerPlan) -> None:
        self.plan = plan

    def assign(self, *arguments: Any) -> LayerPlan:
        return self.plan


class OneSwap(CachePolicy):
    def observe(self, *arguments: Any, **more: Any) -> list[Swap]:
        return [Swap(0, 6)]


class Says:
    """A predictor that foresees all tokens on two experts of the next layer."""

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor]:
        return layer + 1, torch.tensor([[4, 7]] * len(hidden))


EVERY = torch.arange(EXPERTS).view(-1, TOP_K)  # each expert once


def step(executor: Executor, layer: int, ids: Tensor = EVERY) -> Tensor:
    weights = torch.full(ids.shape, 1 / TOP_K)
    with torch.inference_mode():
        return executor.run(layer, inputs(len(ids), layer), ids, weights)


@pytest.fixture
def order() -> Order:
    return Order()


@pytest.fixture
def make(order: Order) -> Callable[..., Executor]:
    """An executor with residents 0 and 1 in each layer and `scratch` slots, whose plan is given."""

    def build(plan: LayerPlan, prefetch: str = "none", profile: str = "paper", **more: Any) -> Executor:
        scratch = more.pop("scratch", 4)
        setting = Setting(prefetch=prefetch, slots=8 + scratch, scratch=scratch, count=2, profile=profile)
        model = tiny_model()
        device = SimDevice(setting.slots * model.layout.record_bytes, dependencies=order)
        cache = OneSwap(4, EXPERTS, 2) if more.pop("swap", False) else CachePolicy(4, EXPERTS, 2)
        cache.initial = lambda layer: (0, 1)  # type: ignore[method-assign]
        executor = tiny_executor(setting, model, device, assign=Fixed(plan), cache=cache, **more)
        if prefetch != "none":
            executor.prefetcher._predictor = Says()
        order.labels.clear()
        return executor

    return build


def test_the_order_of_issue(make: Callable[..., Executor], order: Order) -> None:
    """The CPU starts first; nothing but the last sum is issued behind its rows, which a real device makes the host wait for."""
    executor = make(LayerPlan((5, 6, 7), (0, 1, 2, 3, 4), (2, 3, 4)), prefetch="next_gate", swap=True)
    executor._beside = [lambda hidden: order.labels.append("beside")] * 4
    executor.period.seconds = 1.0
    step(executor, 0)
    assert order.labels == [
        "dense",
        "predict",
        "activations down",
        "cpu 0",
        "experts 0.0",  # both residents
        "copy 0.2",
        "experts 0.2",
        "copy 0.3",
        "experts 0.3",
        "copy 0.4",
        "experts 0.4",
        "beside",
        "copy 1.4",  # prefetched behind the demanded ones
        "copy 1.7",
        "copy 0.6",  # swapped in
        "activations up",
        "join 0",
    ]


def test_with_many_slots_fetched_experts_are_copied_and_launched_in_groups(
    make: Callable[..., Executor], order: Order
) -> None:
    executor = make(LayerPlan((5, 6, 7), (0, 1, 2, 3, 4), (2, 3, 4)), scratch=8)
    step(executor, 0)
    assert [label for label in order.labels if "copy" in label or "experts" in label] == [
        "experts 0.0",
        "copy 0.2",
        "experts 0.2",
        "copy 0.4",
        "experts 0.4",
    ]
    assert executor.residency.copies == 4 * 2 + 3


def test_the_timeline_of_a_step(make: Callable[..., Executor]) -> None:
    """CPU, accelerator and link work side by side; one of the two fetched experts waits for its copy."""
    executor = make(LayerPlan((3, 4, 5, 6, 7), (0, 1, 2), (2,)))
    costs = executor._costs
    start = executor.device.now() + 50e-6  # the dense part
    step(executor, 0)
    clock = executor.device.clock  # type: ignore[attr-defined]
    spans = {span.label: (span.start, span.end) for span in clock.timeline if span.start >= start}
    assert spans["experts 0.0"] == pytest.approx((start, start + costs.launch + 2 * costs.gpu[1]))
    assert spans["copy 0.2"][0] == pytest.approx(start)
    down = CostModel(load("paper"), SIZE, "w8", 4).activation_copy(4)
    assert spans["cpu 0"][0] == pytest.approx(start + down)
    assert spans["cpu 0"][1] - spans["cpu 0"][0] == pytest.approx(5 * costs.cpu[1])
    assert spans["experts 0.2"][0] == pytest.approx(spans["copy 0.2"][1])
    assert spans["join 0"][0] == pytest.approx(max(spans["experts 0.2"][1], spans["activations up"][1]))
    counters = executor._telemetry.layer(0)
    assert counters.seconds == pytest.approx(clock.now - start)


def test_an_expert_that_was_prefetched_is_not_copied_again(
    make: Callable[..., Executor], order: Order
) -> None:
    executor = make(LayerPlan((1, 2, 3, 5, 6), (0, 4, 7), ()), prefetch="next_gate")
    executor.period.seconds = 1.0
    executor.residency.fetch(1, 4)
    executor.residency.fetch(1, 7)
    order.labels.clear()
    step(executor, 1)
    assert [label for label in order.labels if "1." in label] == ["experts 1.0", "experts 1.4", "experts 1.7"]
    counters = executor._telemetry.layer(1)
    assert (counters.resident, counters.prefetched, counters.cpu) == (1, 2, 5)
    assert (counters.prefetch_used, counters.prefetch_late, counters.prefetch_wasted) == (2, 0, 0)
    assert executor.residency.scratch(1) == []


def test_prefetched_experts_that_are_late_or_wasted_free_their_slots(make: Callable[..., Executor]) -> None:
    executor = make(LayerPlan((2, 3), (0, 1), ()))
    executor.residency.fetch(1, 3)
    executor.residency.fetch(1, 7)
    step(executor, 1, torch.tensor([[0, 1], [2, 3]]))
    counters = executor._telemetry.layer(1)
    assert (counters.prefetch_used, counters.prefetch_late, counters.prefetch_wasted) == (0, 1, 1)
    assert executor.residency.free_slots() == 4


def test_a_resident_whose_copy_is_under_way_counts_as_a_resident(make: Callable[..., Executor]) -> None:
    executor = make(LayerPlan((1, 2, 3, 4, 5, 7), (6, 0), ()))
    executor.residency.swap(0, evict=1, load=6)
    assert executor.residency.unsettled(0) == {6}
    executor.policies.assign.plan = LayerPlan((1, 2, 3, 4, 5, 7), (0, 6), ())  # type: ignore[attr-defined]
    step(executor, 0)
    counters = executor._telemetry.layer(0)
    assert (counters.resident, counters.lookups) == (2, 8)


def test_the_period_is_measured_between_layers_of_one_pass(make: Callable[..., Executor]) -> None:
    executor = make(LayerPlan(tuple(range(EXPERTS)), (), ()))
    for layer in range(4):
        step(executor, layer)
    pause = executor.device.stream("compute")
    period = executor.period.seconds
    assert 0 < period < 1
    executor.device.charge(pause, 100.0, "the user thinks")
    step(executor, 0)
    step(executor, 1)
    assert executor.period.seconds == pytest.approx(period)


def test_outputs_keep_the_models_type(make: Callable[..., Executor]) -> None:
    executor = make(LayerPlan(tuple(range(2, EXPERTS)), (0, 1), ()))
    with torch.inference_mode():
        out = executor.run(0, inputs(4, 0).bfloat16(), EVERY, torch.ones(4, TOP_K).bfloat16())
    assert (out.dtype, out.shape) == (torch.bfloat16, (4, HIDDEN))


@pytest.mark.parametrize("arithmetic", ["exact", "int8"])
def test_an_expert_does_not_depend_on_which_others_share_its_launch(arithmetic: str) -> None:
    model = tiny_model("w4", arithmetic)
    hidden, slots = inputs(6, 0), torch.arange(12)
    offsets = [0, 1, 4, 5, 12]
    together = torch.empty(12, HIDDEN)
    compute_experts(model.layout, model.records[0][:4], offsets, slots, hidden, together, arithmetic)
    alone = torch.empty(12, HIDDEN)
    for expert in (2, 0, 3, 1):
        mine = slots[offsets[expert] : offsets[expert + 1]]
        compute_experts(
            model.layout, [model.records[0][expert]], [0, len(mine)], mine, hidden, alone, arithmetic
        )
    assert torch.equal(together, alone)


def test_copies_are_blamed_for_delays_until_they_have_left_the_link(make: Callable[..., Executor]) -> None:
    """Not for one layer only: a swap may hold up the demanded copies of many."""
    executor = make(LayerPlan((), (0, 1), ()), swap=True, profile="egpu-x4")
    step(executor, 0, torch.tensor([[0, 1]]))
    executor.policies.cache = CachePolicy(4, EXPERTS, 2)
    queued = []
    for layer in (1, 2):
        assert executor.residency.view(layer).link_free > 0
        step(executor, layer, torch.tensor([[0, 1]]))
        queued.append(executor.guards.swaps)
    executor.policies.assign.plan = LayerPlan((), (0, 2), (2,))  # type: ignore[attr-defined]
    step(executor, 3, torch.tensor([[0, 2]]))  # behind whose copy none is left
    assert [*queued, executor.guards.swaps] == [1, 1, 0]
