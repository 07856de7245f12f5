"""What holds at every moment, whatever the policies, budgets, routing and schedule."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dali.devices import Dependencies, Device, Operation, SimDevice, host_memory
from dali.devices.dependencies import dependencies
from dali.hardware.cost import ExpertCosts
from dali.hardware.profile import known
from dali.policies import names
from dali.policies.cache import CachePolicy, Swap
from dali.policies.plan import LayerPlan, ResidencyView
from runtime.foreseen import echo
from runtime.tiny_runtime import (
    EXPERTS,
    HIDDEN,
    LAYERS,
    TOP_K,
    Model,
    Setting,
    check_slots,
    tiny_executor,
    tiny_model,
)


class AnyPlan:
    """A policy that takes any legal plan: what the executor can carry out must not depend on how good plans are."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._fetches = self._random.random() < 0.7  # never to fetch leaves swaps in flight for long

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        share = self._random.random()
        gpu = [expert for expert in active if self._random.random() < share]
        residents = [expert for expert in gpu if expert in view.resident]
        landing = [expert for expert in view.landing() if expert in gpu]
        absent = [expert for expert in gpu if expert not in view.resident and expert not in view.in_flight]
        self._random.shuffle(absent)
        fetch = tuple(absent) if view.slots and self._fetches else ()
        on_gpu = (*residents, *landing, *fetch)
        return LayerPlan(tuple(expert for expert in active if expert not in on_gpu), on_gpu, fetch)


class AnySwaps(CachePolicy):
    """A policy that swaps at random what it may swap."""

    def __init__(self, capacity: int, seed: int) -> None:
        super().__init__(LAYERS, EXPERTS, capacity, seed)
        self._random = Random(seed)

    def observe(
        self,
        layer: int,
        workload: Any,
        resident: Any,
        fetched: Any = (),
        protected: Any = frozenset(),
        signals: Any = None,
    ) -> list[Swap]:
        victims = sorted(resident - protected)
        loads = sorted(set(range(EXPERTS)) - resident)
        count = self._random.randint(0, min(len(victims), len(loads)))
        pairs = zip(self._random.sample(victims, count), self._random.sample(loads, count), strict=True)
        return [Swap(*pair) for pair in pairs]


class Inspector:
    """Looks into an executor between its calls and inside its kernel."""

    def __init__(self, setting: Setting, model: Model, **policies: Any) -> None:
        self.model, self.setting = model, setting
        self.owner = {
            self.name(record): expert for layer in model.records for expert, record in enumerate(layer)
        }
        self.computed: Counter[tuple[int, int]] = Counter()  # (expert, slot row) of the layer step under way
        self.device = SimDevice(setting.slots * model.layout.record_bytes, seed=setting.seed)
        self.executor = tiny_executor(setting, model, self.device, self.kernel, **policies)
        self.residency = self.executor.residency
        self.capacity = len(self.residency.residents(0))
        self.placed, self.swapped = self.residency.copies, 0  # copies at the start, and for swaps
        self.swap, self.residency.swap = self.residency.swap, self.guarded_swap  # type: ignore[method-assign]

    @staticmethod
    def name(record: Tensor) -> bytes:
        return record[:256].numpy().tobytes()

    def kernel(
        self,
        layout: Any,
        records: Sequence[Tensor],
        offsets: Any,
        slots: Tensor,
        hidden: Tensor,
        rows: Tensor,
    ) -> None:
        """Notes which expert's bytes were there for which rows; a slot that is empty or half-way full has no owner."""
        for index, record in enumerate(records):
            mine = slots[offsets[index] : offsets[index + 1]].tolist()
            self.computed.update((self.owner[self.name(record)], slot) for slot in mine)
        rows[slots] = hidden[slots // TOP_K].float()

    def guarded_swap(self, layer: int, evict: int, load: int, donor: int | None) -> None:
        assert evict not in self.residency.unsettled(layer if donor is None else donor), "evicted in flight"
        self.swapped += load not in self.residency.scratch(layer)
        self.swap(layer, evict, load, donor)

    def step(self, layer: int, ids: Tensor) -> None:
        weights = torch.full(ids.shape, 1 / TOP_K)
        hidden = torch.ones(len(ids), HIDDEN)
        self.executor.run(layer, hidden, ids, weights)
        assert self.computed == Counter(
            {(expert, slot): 1 for slot, expert in enumerate(ids.flatten().tolist())}
        )
        self.computed.clear()
        check_slots(self.residency, self.setting.slots, self.capacity)
        assert self.device.used <= self.device.budget


def check_telemetry(inspector: Inspector, active: int) -> None:
    """`active`: experts that were computed, over all layer steps."""
    executor, residency, layout = inspector.executor, inspector.residency, inspector.model.layout
    total = executor._telemetry.total()
    assert total.resident + total.prefetched + total.fetched + total.cpu == total.lookups == active
    waiting = sum(len(residency.scratch(layer)) for layer in range(LAYERS))
    prefetches = total.prefetch_used + total.prefetch_late + total.prefetch_wasted + waiting
    copies = residency.copies - inspector.placed
    assert copies == total.fetched + prefetches + inspector.swapped
    assert total.link_bytes == copies * layout.record_bytes
    assert total.prefetched == total.prefetch_used
    assert total.expert_bytes == active * layout.weight_bytes


_routing = st.lists(  # of each layer step, each token's experts
    st.lists(st.permutations(range(EXPERTS)).map(lambda order: order[:TOP_K]), min_size=1, max_size=8),
    min_size=LAYERS,
    max_size=4 * LAYERS,
)
_slots = st.sampled_from((0, 1, 2, 5, 11, 16, 31, 32, 40))
_settings = st.builds(
    Setting,
    assign=st.sampled_from(names("assign")),
    prefetch=st.sampled_from(names("prefetch")),
    cache=st.sampled_from(names("cache")),
    slots=_slots,
    profile=st.sampled_from(known()),
    distance=st.integers(1, LAYERS),
    count=st.sampled_from((None, 1, 3)),
    seed=st.integers(0, 2**32),
)


def play(inspector: Inspector, routing: list[list[list[int]]]) -> None:
    active = 0
    with torch.inference_mode():
        for turn, tokens in enumerate(routing):
            ids = torch.tensor(tokens)
            inspector.step(turn % LAYERS, ids)
            active += len(ids.unique())
    check_telemetry(inspector, active)


@settings(deadline=None, max_examples=200)
@given(_settings, _routing)
def test_policies_keep_the_invariants(setting: Setting, routing: list[list[list[int]]]) -> None:
    play(Inspector(setting, tiny_model()), routing)


@settings(deadline=None, max_examples=150)
@given(_settings, _routing, st.integers(0, 2**32), st.integers(0, EXPERTS))
def test_so_does_any_legal_plan_and_swap(
    setting: Setting, routing: list[list[list[int]]], seed: int, capacity: int
) -> None:
    capacity = min(capacity, setting.slots // LAYERS)
    play(Inspector(setting, tiny_model(), assign=AnyPlan(seed), cache=AnySwaps(capacity, seed)), routing)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_fetching_policy_always_finds_a_slot(slots: int) -> None:
    """With all but the layer's own prefetches waiting for others, and none free, it recycles its own."""
    setting = Setting("gpu", "ridge", "none", slots, batch=8, count=2)
    play(Inspector(setting, tiny_model()), [[[0, 1], [2, 3], [4, 5], [6, 7]]] * (3 * LAYERS))


class Instant(Device):
    """Operations run as they are issued, and no time passes."""

    def _memory(self, nbytes: int) -> Tensor:
        return host_memory(nbytes)

    def _enqueue(self, operation: Operation, reads: set[int], writes: set[int]) -> None:
        self._execute(operation)

    def _finish(self, operation: Operation) -> None: ...

    def _poll(self, operation: Operation) -> bool:
        return True


@pytest.mark.parametrize("make", [Dependencies, dependencies], ids=["python", "compiled"])
@torch.inference_mode()
def test_what_is_remembered_of_past_steps_stays_bounded(make: Callable[[], Any]) -> None:
    """10,000 layer steps: operations, dependencies and buffers are let go of."""
    operations: WeakSet[Operation] = WeakSet()
    setting, model, random = Setting(assign="greedy", count=1, slots=12, scratch=4), tiny_model(), Random(0)

    class Watched(type(make())):  # type: ignore[misc]
        def derive(self, operation: Operation, *accesses: Any) -> None:
            operations.add(operation)
            super().derive(operation, *accesses)

    device = Instant("instant", setting.slots * model.layout.record_bytes, Watched())
    executor = tiny_executor(setting, model, device, echo)
    known, residency, workspace = device._dependencies, executor.residency, executor._workspace
    sizes = []
    for turn in range(10_000):
        ids = torch.tensor([random.sample(range(EXPERTS), TOP_K)])
        executor.run(turn % LAYERS, torch.ones(1, HIDDEN), ids, torch.ones(1, TOP_K))
        if turn % 1000 == 999:
            gc.collect()
            held = sum(
                len(layer) for layer in (*residency._residents, *residency._scratch, *residency._unsettled)
            )
            counted: Any = known
            plain = make is Dependencies
            readers = sum(map(len, counted._readers.values())) if plain else 0
            remembered = len(counted._writer) + readers if plain else counted.remembered
            sizes.append((len(operations), remembered, held + len(workspace._buffers)))
    for size in zip(*sizes, strict=True):
        assert max(size) <= 1.5 * min(size), sizes
    assert executor._telemetry.total().swaps > 100
