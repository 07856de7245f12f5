"""One MoE layer's step over an accelerator and the CPU.

The order of a step: the host learns the routing; the assignment policy plans; CPU experts start on the host stream; residents
are launched in one group, then experts in flight and fetched ones as their copies land; the cache policy's swaps that cost no
copy follow, then prefetches for a later layer behind the demanded copies, then the swaps that do; at last the CPU's rows go up
and all rows are summed in slot order. What waits for what is the device's business: every launch and copy declares what it
touches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from dali.devices import COMPUTE, HOST, Buffer, Device
from dali.errors import DaliError
from dali.hardware.cost import CostModel
from dali.kernels.expert import ExpertLayout
from dali.kernels.reference import compute_experts, reduce_slots
from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import PrefetchPolicy
from dali.runtime.prefetch import Predictor, Prefetcher
from dali.runtime.replacement import Replacement
from dali.runtime.residency import COPY, Residency
from dali.runtime.telemetry import LayerCounters, Telemetry
from dali.runtime.workspace import Workspace

CPU = torch.device("cpu")
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
        predict_seconds: Callable[[int], float] = lambda tokens: 0.0,
        beside: Sequence[Callable[[Tensor], None] | None] = (),
        kernel: Kernel = compute_experts,
    ) -> None:
        """`records[layer][expert]`: the host's packed experts. `dense_seconds(tokens)`: modelled time of everything between
        two layers' experts; `predict_seconds(tokens)`: of one prediction. `beside[layer](hidden)`: what else needs the layer's
        input and may run while its experts are on their way. `kernel`: as kernels.reference.compute_experts."""
        self.device = device
        self.residency = residency
        self.policies = policies
        self._layout = layout
        self._records = records
        self._activation_copy = cache(model.activation_copy)
        self._costs = model.costs
        self._telemetry = telemetry
        self._dense_seconds = dense_seconds
        self._beside = beside or [None] * len(records)
        self._kernel = kernel
        self._compute, self._host = device.stream(COMPUTE), device.stream(HOST)
        self._down, self._up = device.stream(DOWN), device.stream(UP)
        self._workspace = Workspace(device)
        self.prefetcher = Prefetcher(
            policies.prefetch, predictor, policies.assign, residency, model.costs, telemetry, predict_seconds
        )
        self.replacement = Replacement(policies.cache, policies.assign, residency, model.costs, len(records))
        self._steps = 0
        self._started = 0.0  # the last layer's start, on the device's clock
        self._period = 0.0  # mean seconds from one layer's start to the next
        self._failed = False
        for layer in range(len(records)):
            residency.place(layer, policies.cache.initial(layer) if residency.capacity else ())
        device.synchronize()

    def layer(self, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """MoE layer `index` as transformers calls an experts module."""
        return partial(self.run, index)

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], ids and weights [tokens, top_k] -> [tokens, hidden] in hidden's dtype.

        After a failure or Ctrl-C inside, the next step starts from slots that were filled anew.
        """
        if self._failed:
            self._recover()
        try:
            return self._run(layer, hidden, ids, weights)
        except BaseException:
            self._failed = True
            raise

    def _recover(self) -> None:
        """Let the queues run dry and fill the slots anew; not done at once, as a second Ctrl-C could cut it short."""
        with suppress(DaliError):  # the failure that brought us here, raised once more
            self.device.synchronize()
        self.residency.reset()
        self._failed = False

    def _run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        device, residency = self.device, self.residency
        counters = self._telemetry.layer(layer)
        device.charge(self._compute, self._dense_seconds(len(hidden)), "dense")
        predicted = self.prefetcher.predict(layer, hidden)
        workload, pairs, forecast = self._routing(layer, ids, predicted)

        started = self._tick(layer)
        view = residency.view(layer)
        planning = time.perf_counter()
        plan = self.policies.assign.assign(layer, workload, view, self._costs)
        self._telemetry.plan_seconds += time.perf_counter() - planning
        self.prefetcher.count(layer, workload, plan, counters)
        self._settle(layer, workload, view, plan)

        rows = self._workspace.take("rows", ids.numel(), hidden.shape[1], torch.float32, hidden.device)
        step = _Step(layer, workload, pairs, device.adopt(hidden.contiguous()), rows)
        staged = self._start_cpu(step, plan.cpu)
        self._start_accelerator(step, plan, view)
        if (work := self._beside[layer]) is not None:
            work(hidden)
        self._count(counters, workload, plan)
        swaps = self.replacement.swap_roles(layer, workload, counters)
        if predicted is not None:
            target = predicted[0]
            idle = self._period * (target - layer)
            self.prefetcher.queue(target, forecast, idle, self._layout.record_bytes)
        self.replacement.queue(layer, swaps, counters, self._layout.record_bytes)

        if staged is not None:  # only now: a queue that waits for a thread may hold up whoever fills it
            seconds = self._activation_copy(len(staged.slots))
            device.copy(self._up, staged.rows, staged.packed, seconds, label="activations up")
        out = device.adopt(torch.empty_like(hidden))
        device.launch(
            self._compute,
            partial(_join, rows.tensor, staged, weights, out.tensor),
            [rows] if staged is None else [rows, staged.rows],
            [out] if staged is None else [out, rows],
            self._costs.launch,
            label=f"join {layer}",
        )
        result = device.release(out)
        device.release(step.x)
        self._clock(counters, started)
        return result

    def _routing(
        self, layer: int, ids: Tensor, predicted: tuple[int, Tensor] | None
    ) -> tuple[list[int], dict[int, list[int]], list[int]]:
        """Workload and (token, slot) pairs by expert, and the predicted workload of a later layer: one host copy for all."""
        both = ids.flatten() if predicted is None else torch.cat([ids.flatten(), predicted[1].flatten()])
        flat = both.tolist()
        self.device.synchronize(self.device.record(self._compute))
        pairs: dict[int, list[int]] = {}
        for slot, expert in enumerate(flat[: ids.numel()]):
            pairs.setdefault(expert, []).append(slot)
        workload, forecast = [0] * len(self._records[layer]), [0] * len(self._records[layer])
        for expert, mine in pairs.items():
            workload[expert] = len(mine)
        for expert in flat[ids.numel() :]:
            forecast[expert] += 1
        return workload, pairs, forecast

    def _start_cpu(self, step: _Step, experts: Sequence[int]) -> _Staged | None:
        """Queue the activations' way down and the CPU's experts as one call on the host stream."""
        if not experts:
            return None
        device, hidden, take = self.device, step.x.tensor, self._workspace.take
        tokens, width = hidden.shape
        slots, offsets = step.slots(experts)
        below = take("below", tokens, width, hidden.dtype, CPU)
        packed = take("packed", len(slots), width, torch.float32, CPU)
        above = take("above", len(slots), width, torch.float32, hidden.device)
        records = [self._records[step.layer][expert] for expert in experts]
        device.copy(self._down, below, step.x, self._activation_copy(tokens), label="activations down")
        pairs = len(step.rows.tensor)

        def compute() -> None:
            full = torch.empty(pairs, width)
            self._kernel(self._layout, records, offsets, slots, below.tensor, full)
            torch.index_select(full, 0, slots, out=packed.tensor)

        seconds = sum([self._costs.cpu[step.workload[expert]] for expert in experts])
        device.launch(self._host, compute, [below], [packed], seconds, label=f"cpu {step.layer}")
        return _Staged(slots, packed, above)

    def _start_accelerator(self, step: _Step, plan: LayerPlan, view: ResidencyView) -> None:
        """Queue launches and demanded copies in plan order; scratch slots recycle from the oldest launch on."""
        residency, layer = self.residency, step.layer
        for expert in residency.scratch(layer):
            if expert not in plan.gpu:  # late or wasted: nothing will read it
                residency.release(layer, expert)
        if not plan.gpu:
            return
        slots, offsets = step.slots(plan.gpu)
        residents = sum([expert in view.resident for expert in plan.gpu])
        if residents:
            self._launch(step, plan.gpu[:residents], slots[: offsets[residents]], offsets[: residents + 1])
        recyclable = deque[int]()
        fetched = set(plan.fetch)
        for turn in range(residents, len(plan.gpu)):
            expert, begin, end = plan.gpu[turn], offsets[turn], offsets[turn + 1]
            if expert in fetched:
                if not residency.free_slots():
                    residency.release(layer, recyclable.popleft())
                residency.fetch(layer, expert)
            self._launch(step, (expert,), slots[begin:end], [0, end - begin])
            if not residency.is_resident(layer, expert):
                recyclable.append(expert)

    def _launch(self, step: _Step, experts: Sequence[int], slots: Tensor, offsets: list[int]) -> None:
        """One grouped launch of experts whose slots are, or are about to be, filled."""
        costs, workload, x, rows = self._costs, step.workload, step.x, step.rows
        buffers = [self.residency.slot(step.layer, expert) for expert in experts]
        records = [buffer.tensor for buffer in buffers]
        self.device.launch(
            self._compute,
            partial(self._kernel, self._layout, records, offsets, slots, x.tensor, rows.tensor),
            [*buffers, x],
            [rows],
            costs.launch + sum([costs.gpu[workload[expert]] for expert in experts]),
            label=f"experts {step.layer}.{experts[0]}",
        )

    def _settle(self, layer: int, workload: Sequence[int], view: ResidencyView, plan: LayerPlan) -> None:
        """Now and then, tell the guards what the step shows. Prefetches and swaps bring what experts being here gains on an idle
        link; they cost what the step loses to their copies under way, as no demanded one can start before those."""
        prefetches, swaps = self.prefetcher.queued, self.replacement.queued
        if plan.fetch or not view.link_free:  # by the layer's end they have left the link
            self.prefetcher.queued = self.replacement.queued = 0
        self._steps += 1
        if self._steps % SAMPLE:
            return
        costs, idle = self._costs, replace(view, link_free=0.0)
        undisturbed = self.policies.assign.assign(layer, workload, idle, costs) if view.link_free else plan
        seconds = makespan(undisturbed, workload, idle, costs)
        delay = (makespan(plan, workload, view, costs) - seconds) / max(prefetches + swaps, 1)
        self.prefetcher.settle(layer, workload, idle, seconds, delay * prefetches)
        self.replacement.settle(layer, workload, idle, seconds, delay * swaps)

    def _tick(self, layer: int) -> float:
        """Note a layer's start; the mean period tells how long the link has until the next one."""
        now = self.device.now()
        if layer:  # from the last layer to the first there is more than a layer
            since = now - self._started
            self._period = since if self._period == 0.0 else 0.9 * self._period + 0.1 * since
        self._started = now
        self.device.busy_seconds()  # what the streams did until now was not this layer's experts
        return now

    def _count(self, counters: LayerCounters, workload: Sequence[int], plan: LayerPlan) -> None:
        counters.steps += 1
        counters.routed_tokens += sum(workload)
        counters.cpu += len(plan.cpu)
        counters.fetched += len(plan.fetch)
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
class _Step:
    """One layer's step: the (token, slot) pairs of each active expert, its input and the rows of its outputs."""

    layer: int
    workload: list[int]
    pairs: dict[int, list[int]]
    x: Buffer
    rows: Buffer

    def slots(self, experts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The experts' pairs one after another, and where each begins."""
        flat: list[int] = []
        offsets = [0]
        for expert in experts:
            flat += self.pairs[expert]
            offsets.append(len(flat))
        return torch.tensor(flat), offsets


@dataclass
class _Staged:
    """The CPU's outputs on their way up: `rows.tensor[i]` is the row of (token, slot) `slots[i]`."""

    slots: Tensor
    packed: Buffer  # on the host
    rows: Buffer  # on the accelerator


def _join(rows: Tensor, staged: _Staged | None, weights: Tensor, out: Tensor) -> None:
    """Put the CPU's rows among the accelerator's and sum over slots, in slot order."""
    if staged is not None:
        rows[staged.slots] = staged.rows.tensor
    out.copy_(reduce_slots(rows, weights))
