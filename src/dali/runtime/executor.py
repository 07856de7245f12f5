"""One MoE layer's step over an accelerator and the CPU.

The order of a step: the host learns the routing; the assignment policy plans; CPU experts start on the host stream; residents
are launched in one group, then experts in flight and fetched ones as their copies land; the cache policy's swaps that cost no
copy follow, then prefetches for a later layer behind the demanded copies, then the swaps that do; the rows are summed in slot
order. What waits for what is the device's business: every launch and copy declares what it touches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dali.devices import COMPUTE, HOST, Buffer, Device
from dali.errors import DaliError
from dali.hardware.cost import CostModel
from dali.kernels.expert import ExpertLayout
from dali.kernels.reference import compute_experts, reduce_slots
from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import PrefetchPolicy
from dali.runtime.prefetch import Predictor, Prefetcher
from dali.runtime.replacement import Replacement
from dali.runtime.residency import COPY, Residency
from dali.runtime.telemetry import LayerCounters, Telemetry

DOWN, UP = "down", "up"  # streams of activations, so that they never queue behind experts
SAMPLE = 17  # one layer step in so many tells the guards what prefetches and swaps bring; rarely divides a layer count

Kernel = Callable[[ExpertLayout, Sequence[Tensor], Sequence[int], Tensor, Tensor, Tensor], None]


@dataclass
class Policies:
    """What decides: where experts run, what is fetched ahead, what stays."""

    assign: AssignPolicy
    prefetch: PrefetchPolicy
    cache: CachePolicy


class Executor:
    """Runs the MoE layers of one model on one device."""

    def __init__(
        self,
        device: Device,
        layout: ExpertLayout,
        records: Sequence[Sequence[Tensor]],
        residency: Residency,
        policies: Policies,
        predictor: Predictor | None,
        model: CostModel,
        telemetry: Telemetry,
        dense_seconds: Callable[[int], float] = lambda tokens: 0.0,
        beside: Sequence[Callable[[Tensor], None] | None] = (),
        kernel: Kernel = compute_experts,
    ) -> None:
        """`records[layer][expert]`: the host's packed experts. `dense_seconds(tokens)`: modelled time of everything between
        two layers' experts. `beside[layer](hidden)`: what else needs the layer's input and may run while its experts are on
        their way. `kernel`: as kernels.reference.compute_experts."""
        self.device = device
        self.residency = residency
        self.policies = policies
        self._layout = layout
        self._records = records
        self._model = model
        self._costs = model.costs
        self._telemetry = telemetry
        self._dense_seconds = dense_seconds
        self._beside = beside or [None] * len(records)
        self._kernel = kernel
        self.prefetcher = Prefetcher(
            policies.prefetch, predictor, policies.assign, residency, model.costs, telemetry
        )
        self.replacement = Replacement(policies.cache, policies.assign, residency, model.costs, len(records))
        self._steps = 0
        self._started = 0.0
        self._period = 0.0  # mean seconds from one layer's start to the next
        for layer in range(len(records)):
            residency.place(layer, policies.cache.initial(layer) if residency.capacity else ())
        device.synchronize()

    def layer(self, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """MoE layer `index` as transformers calls an experts module."""
        return partial(self.run, index)

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], ids and weights [tokens, top_k] -> [tokens, hidden] in hidden's dtype.

        A failure or Ctrl-C inside leaves the executor ready for the next step.
        """
        try:
            return self._run(layer, hidden, ids, weights)
        except BaseException:
            self._recover()
            raise

    def _recover(self) -> None:
        """Let the queues run dry and fill the slots anew."""
        with suppress(DaliError):  # the failure that brought us here, raised once more
            self.device.synchronize()
        self.residency.reset()

    def _run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        device, residency = self.device, self.residency
        counters = self._telemetry.layer(layer)
        device.charge(device.stream(COMPUTE), self._dense_seconds(len(hidden)), "dense")
        predicted = self.prefetcher.predict(layer, hidden)
        workload, pairs, forecast = self._routing(layer, ids, predicted)

        started = self._tick()
        view = residency.view(layer)
        planning = time.perf_counter()
        plan = self.policies.assign.assign(layer, workload, view, self._costs)
        self._telemetry.plan_seconds += time.perf_counter() - planning
        self.prefetcher.count(layer, workload, plan, counters)
        self._settle(layer, workload, view, plan)

        x = device.adopt(hidden)
        rows = device.adopt(hidden.new_empty(ids.numel(), hidden.shape[1], dtype=torch.float32))
        staged = self._start_cpu(layer, plan.cpu, workload, pairs, x, ids.numel())
        self._start_accelerator(layer, plan, workload, pairs, view, x, rows)
        if (work := self._beside[layer]) is not None:
            work(hidden)
        if staged is not None:  # only now: a queue that waits for a thread may hold up whoever fills it
            seconds = self._model.activation_copy(len(staged.slots))
            device.copy(device.stream(UP), staged.rows, staged.packed, seconds, label="activations up")
        out = device.adopt(torch.empty_like(hidden))
        device.launch(
            device.stream(COMPUTE),
            partial(_join, rows.tensor, staged, weights, out.tensor),
            [rows] if staged is None else [rows, staged.rows],
            [out] if staged is None else [out, rows],
            self._costs.launch,
            label=f"join {layer}",
        )
        self._count(counters, workload, view, plan)
        swaps = self.replacement.swap_roles(layer, workload, counters)
        if predicted is not None:
            self.prefetcher.queue(predicted[0], forecast, self._period, self._layout.record_bytes)
        self.replacement.queue(layer, swaps, counters, self._layout.record_bytes)
        result = device.release(out)
        for buffer in (x, rows) if staged is None else (x, rows, staged.inputs, staged.packed, staged.rows):
            device.release(buffer)
        self._clock(counters, started)
        return result

    def _routing(
        self, layer: int, ids: Tensor, predicted: tuple[int, Tensor] | None
    ) -> tuple[list[int], list[list[int]], list[int]]:
        """Workload and (token, slot) pairs by expert, and the predicted workload of a later layer: one host copy for all."""
        both = ids.flatten() if predicted is None else torch.cat([ids.flatten(), predicted[1].flatten()])
        flat = both.tolist()
        self.device.synchronize(self.device.record(self.device.stream(COMPUTE)))
        pairs: list[list[int]] = [[] for _ in self._records[layer]]
        for slot, expert in enumerate(flat[: ids.numel()]):
            pairs[expert].append(slot)
        forecast = [0] * len(pairs)
        for expert in flat[ids.numel() :]:
            forecast[expert] += 1
        return [len(mine) for mine in pairs], pairs, forecast

    def _start_cpu(
        self,
        layer: int,
        experts: Sequence[int],
        workload: Sequence[int],
        pairs: list[list[int]],
        x: Buffer,
        rows: int,
    ) -> _Staged | None:
        """Queue the activations' way down and the CPU's experts as one call on the host stream."""
        if not experts:
            return None
        device, hidden = self.device, x.tensor
        slots, offsets = _slots(experts, pairs)
        below = device.adopt(torch.empty(hidden.shape, dtype=hidden.dtype))
        packed = device.adopt(torch.empty(len(slots), hidden.shape[1]))
        above = device.adopt(torch.empty(len(slots), hidden.shape[1], device=hidden.device))
        records = [self._records[layer][expert] for expert in experts]
        device.copy(
            device.stream(DOWN), below, x, self._model.activation_copy(len(hidden)), label="activations down"
        )

        def compute() -> None:
            full = torch.empty(rows, hidden.shape[1])
            self._kernel(self._layout, records, offsets, slots, below.tensor, full)
            torch.index_select(full, 0, slots, out=packed.tensor)

        seconds = sum(self._costs.cpu[workload[expert]] for expert in experts)
        device.launch(device.stream(HOST), compute, [below], [packed], seconds, label=f"cpu {layer}")
        return _Staged(slots, below, packed, above)

    def _start_accelerator(
        self,
        layer: int,
        plan: LayerPlan,
        workload: Sequence[int],
        pairs: list[list[int]],
        view: ResidencyView,
        x: Buffer,
        rows: Buffer,
    ) -> None:
        """Queue launches and demanded copies in plan order; scratch slots recycle from the oldest launch on."""
        residency = self.residency
        for expert in residency.scratch(layer):
            if expert not in plan.gpu:  # late or wasted: nothing will read it
                residency.release(layer, expert)
        residents = [expert for expert in plan.gpu if expert in view.resident]
        if residents:
            self._launch(layer, residents, workload, pairs, x, rows)
        recyclable = deque[int]()
        fetched = set(plan.fetch)
        for expert in plan.gpu[len(residents) :]:
            if expert in fetched:
                if not residency.free_slots():
                    residency.release(layer, recyclable.popleft())
                residency.fetch(layer, expert)
            self._launch(layer, [expert], workload, pairs, x, rows)
            if not residency.is_resident(layer, expert):
                recyclable.append(expert)

    def _launch(
        self,
        layer: int,
        experts: Sequence[int],
        workload: Sequence[int],
        pairs: list[list[int]],
        x: Buffer,
        rows: Buffer,
    ) -> None:
        """One grouped launch of experts whose slots are, or are about to be, filled."""
        buffers = [self.residency.slot(layer, expert) for expert in experts]
        slots, offsets = _slots(experts, pairs)
        seconds = self._costs.launch + sum(self._costs.gpu[workload[expert]] for expert in experts)
        self.device.launch(
            self.device.stream(COMPUTE),
            partial(
                self._kernel,
                self._layout,
                [buffer.tensor for buffer in buffers],
                offsets,
                slots,
                x.tensor,
                rows.tensor,
            ),
            [*buffers, x],
            [rows],
            seconds,
            label=f"experts {layer}.{experts[0]}",
        )

    def _settle(self, layer: int, workload: Sequence[int], view: ResidencyView, plan: LayerPlan) -> None:
        """Now and then, tell the guards what the step shows; demanded copies queue behind earlier prefetches and swaps."""
        prefetches, swaps = self.prefetcher.queued, self.replacement.queued
        self.prefetcher.queued = self.replacement.queued = 0
        self._steps += 1
        if self._steps % SAMPLE:
            return
        delay = view.link_free / max(prefetches + swaps, 1) if plan.fetch else 0.0
        self.prefetcher.settle(layer, workload, view, plan, delay * prefetches)
        self.replacement.settle(layer, workload, view, plan, delay * swaps)

    def _tick(self) -> float:
        """Note a layer's start; the mean period tells how long the link has until the next one."""
        now = self.device.now()
        since, self._started = now - self._started, now
        self._period = since if self._period == 0.0 else 0.9 * self._period + 0.1 * since
        return now

    def _count(
        self, counters: LayerCounters, workload: Sequence[int], view: ResidencyView, plan: LayerPlan
    ) -> None:
        counters.steps += 1
        counters.routed_tokens += sum(workload)
        counters.cpu += len(plan.cpu)
        counters.fetched += len(plan.fetch)
        counters.resident += sum(expert in view.resident for expert in plan.gpu)
        counters.expert_bytes += (len(plan.cpu) + len(plan.gpu)) * self._layout.weight_bytes
        counters.link_bytes += len(plan.fetch) * self._layout.record_bytes

    def _clock(self, counters: LayerCounters, started: float) -> None:
        counters.seconds += self.device.now() - started
        for stream, seconds in self.device.busy_seconds().items():
            if stream == COPY:
                counters.link_seconds += seconds
            elif stream == HOST:
                counters.cpu_seconds += seconds
            elif stream == COMPUTE:
                counters.accelerator_seconds += seconds


@dataclass
class _Staged:
    """The CPU's outputs on their way up: `rows.tensor[i]` is the row of (token, slot) `slots[i]`."""

    slots: Tensor
    inputs: Buffer  # the host's copy of the activations
    packed: Buffer  # outputs on the host
    rows: Buffer  # outputs on the accelerator


def _slots(experts: Sequence[int], pairs: list[list[int]]) -> tuple[Tensor, list[int]]:
    """The experts' (token, slot) pairs one after another, and where each begins."""
    flat: list[int] = []
    offsets = [0]
    for expert in experts:
        flat += pairs[expert]
        offsets.append(len(flat))
    return torch.tensor(flat), offsets


def _join(rows: Tensor, staged: _Staged | None, weights: Tensor, out: Tensor) -> None:
    """Put the CPU's rows among the accelerator's and sum over slots, in slot order."""
    if staged is not None:
        rows[staged.slots] = staged.rows.tensor
    out.copy_(reduce_slots(rows, weights))
