"""One MoE layer's step over an accelerator and the CPU.

The order of a step: the host learns the routing; the assignment policy plans; CPU experts start on the host stream; residents
are launched in one group, then experts in flight and fetched ones as their copies land; the cache policy's swaps that cost no
copy follow, then prefetches for a later layer behind the demanded copies, then the swaps that do; at last the CPU's rows go up
and all rows are summed in the order of choices. What waits for what is the device's business: every launch and copy declares what
it touches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dali.devices import COMPUTE, HOST, Device
from dali.errors import DaliError
from dali.hardware.cost import CostModel
from dali.kernels.dispatch import compute_experts
from dali.kernels.expert import ExpertLayout
from dali.kernels.pairs import count_pairs, order_pairs
from dali.policies import Policies
from dali.policies.correction import CorrectedCosts
from dali.policies.decisions import Decisions
from dali.policies.guard import Guards, Period
from dali.policies.lanes import group_size
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.signals import Signals
from dali.runtime.decoding_steps import DecodingSteps
from dali.runtime.host import CPU, HostExperts, Kernel
from dali.runtime.journal import Journal
from dali.runtime.layer_step import Step, join
from dali.runtime.loans import by_arrival
from dali.runtime.prefetch import Predictor, Prefetcher
from dali.runtime.replacement import Replacement
from dali.runtime.residency import COPY, Residency
from dali.runtime.workspace import Workspace
from dali.store.expert_pool import ExpertPool
from dali.telemetry import LayerCounters, Telemetry


class Executor:
    """Runs the MoE layers of one model on one device."""

    most_tokens = sys.maxsize  # that a step should have

    def __init__(
        self,
        device: Device,
        pool: ExpertPool,
        residency: Residency,
        policies: Policies,
        predictor: Predictor | None,
        cost_model: CostModel,
        telemetry: Telemetry,
        dense_seconds: Callable[[int], float] = lambda tokens: 0.0,
        predict_seconds: Callable[[int], float] = lambda tokens: 0.0,
        beside: Sequence[Callable[[Tensor], None] | None] = (),
        kernel: Kernel = compute_experts,
        scores: Callable[[int, Tensor], Tensor] | None = None,
        guarded: bool = True,
    ) -> None:
        """`pool`: the host's experts. `dense_seconds(tokens)`: modelled time of
        everything between two layers' experts; `predict_seconds(tokens)`: of one prediction. `beside[layer](hidden)`: what else
        needs the layer's input and may run while its experts are on their way. `scores(layer, hidden)`: the router's, [tokens,
        experts]. `guarded`: prefetches and swaps may be rested."""
        self.device = device
        self.residency = residency
        self.policies = policies
        self._pool = pool
        self._loans = residency.loans
        self._layouts = pool.layouts
        self._costs = cost_model.costs
        self.expected = CorrectedCosts(cost_model.costs)
        self.corrects = True  # unless others use the host stream, too
        self._landed, self._copying = 0, 0.0  # copies that were noted, and seconds that were not yet
        self._ended = 0.0  # the layer before
        self._telemetry = telemetry
        self.dense_seconds = dense_seconds
        self._beside = beside or [None] * pool.layers
        self._kernel = kernel
        self._scores = scores if "scores" in policies.cache.signals else None
        self._compute = device.stream(COMPUTE)
        self._workspace = workspace = Workspace(device)
        self._host_experts = HostExperts(device, residency.loans, workspace, cost_model, kernel)
        self._experts = pool.experts
        self._workload = telemetry.count_experts(pool.layers, pool.experts)
        self.decisions = decisions = Decisions(policies, pool.layers, pool.experts)
        self.guards = guards = Guards(
            decisions.assign, cost_model.costs, pool.layers, guarded, predicts=predictor is not None
        )
        self.prefetcher = Prefetcher(
            decisions, guards, predictor, residency, cost_model.costs, telemetry, predict_seconds
        )
        self.replacement = Replacement(decisions, guards, residency)
        self.period = Period()
        self.steps: DecodingSteps | None = None  # where its plans may be doubted
        self.journal: Journal | None = None  # where somebody asks why
        self._failed = False
        for layer in range(pool.layers):
            residency.place(layer, decisions.initial(layer) if residency.resident_slots else ())
        device.synchronize()

    def layer(self, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """MoE layer `index` as transformers calls an experts module."""
        return partial(self.run, index)

    def begin_step(self, tokens: int) -> None:
        """A step of so many tokens begins, before its first MoE layer."""
        if self.steps is not None:
            self.steps.begin(tokens)
            self.prefetcher.rests = self.steps.on_cpu

    @property
    def _on_cpu(self) -> bool:
        return self.steps is not None and self.steps.on_cpu

    def keep_journal(self) -> Journal:
        """Take note of each layer's step from now on."""
        self.journal = Journal(self._costs, self.device)
        return self.journal

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
        self._loans.forget()
        self.residency.reset()
        self._failed = False

    def _run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        if layer == 0:
            self.begin_step(len(hidden))
        self.device.charge(self._compute, self.dense_seconds(len(hidden)), "dense")
        predicted = self.prefetcher.predict(layer, hidden)
        routed, ahead = self._routing(
            layer, hidden, ids, weights, None if predicted is None else predicted[1]
        )
        later = None if predicted is None else predicted[0]
        return self._execute(layer, hidden, routed, weights, later, ahead)

    def _execute(
        self,
        layer: int,
        hidden: Tensor,
        routed: Tensor,
        weights: Tensor,
        later: int | None,
        ahead: Tensor | None,
    ) -> Tensor:
        """Plan a layer's step and carry it out. routed: its ids, and `ahead` those predicted of layer `later`, on the host."""
        counters = self._telemetry.layer(layer)
        workload = count_pairs(routed, self._experts)
        self._workload[layer] += np.bincount(routed.numpy().reshape(-1), minlength=self._experts)

        started = self._tick(layer, counters)
        before, view = counters.cpu_seconds, self.residency.view(layer)
        plan = self._plan(layer, workload, view, counters)
        if self.journal is not None:
            self.journal.costs = self.expected.now
            self.journal.note(layer, workload, view, plan, self.residency.scratch(layer), started)

        step = self._queue(layer, hidden, routed, workload, plan, view)
        if (work := self._beside[layer]) is not None:
            work(hidden)
        self._count(counters, routed.numel(), plan, self._layouts[layer])
        signals = None
        if self.policies.cache.signals:
            scores = None if self._scores is None else self._scores(layer, hidden).cpu().numpy()
            signals = Signals(routed.numpy(), weights.float().cpu().numpy(), scores)
        swaps = self.replacement.swap_roles(layer, workload, view.link_free, counters, signals, self._on_cpu)
        expected = self._foreseen(layer, len(routed), later, ahead, workload, signals)
        if expected:
            self.prefetcher.queue(layer, expected, self.period.seconds, self._layouts)
        self.replacement.queue(layer, swaps, counters, self._layouts[layer].record_bytes)

        result = self._sum(step, weights, hidden)
        self.account(counters, started)
        self._observe(layer, workload, plan, counters.cpu_seconds - before, started)
        return result

    def _plan(
        self, layer: int, workload: list[int], view: ResidencyView, counters: LayerCounters
    ) -> LayerPlan:
        """The layer's plan; what it says of prefetches and swaps is counted, and their guards are told."""
        residency, planning = self.residency, time.perf_counter()
        if self._on_cpu:
            plan = LayerPlan(tuple([expert for expert, tokens in enumerate(workload) if tokens]), (), ())
        else:
            plan = self.decisions.assign(layer, workload, view, self.expected.now)
        self._telemetry.plan_seconds += time.perf_counter() - planning
        self.prefetcher.count(layer, workload, plan, counters)
        if not self._on_cpu:
            self.guards.settle(
                layer,
                workload,
                view,
                plan,
                residency.scratch(layer),
                residency.residents(layer),
                self.prefetcher.predict_seconds,
            )
        return plan

    def _observe(
        self, layer: int, workload: list[int], plan: LayerPlan, cpu_seconds: float, started: float
    ) -> None:
        """Hold what a layer took, and the CPU's experts in it, against what plans go by."""
        expected, cpu = self.expected, self.expected.given.cpu
        if self.corrects:
            computing = expected.given.call + sum([cpu[workload[expert]] for expert in plan.cpu])
            changed = bool(plan.cpu) and expected.note_cpu(computing, cpu_seconds)
            if expected.note_copies(*self._copies()) or changed:
                costs = expected.now
                self.guards.costs = self.prefetcher.costs = costs
                self.residency.expect(costs.link)
        if self.steps is not None:
            begun, self._ended = self._ended if layer else started, self.device.now()
            self.steps.add(layer, self._ended - begun, sum([cpu[tokens] for tokens in workload if tokens]))

    def _copies(self) -> tuple[int, float]:
        """Experts whose copies were seen to end since this was last asked, and the seconds these took."""
        self.residency.unsettled(0)
        before, self._landed = self._landed, self.residency.landed
        seconds, self._copying = self._copying, 0.0
        return self._landed - before, seconds

    def _queue(
        self,
        layer: int,
        hidden: Tensor,
        routed: Tensor,
        workload: list[int],
        plan: LayerPlan,
        view: ResidencyView,
    ) -> Any:
        """Queue the CPU's experts and the accelerator's, with the copies these need. Returns what `_sum` wants of it."""
        plan, missing = by_arrival(
            plan, self._loans.note(layer, [*plan.cpu, *plan.fetch]), workload, self.expected.now
        )
        if self.journal is not None:
            self.journal.arrange(plan, missing)
        rows = self._workspace.take("rows", routed.numel(), hidden.shape[1], torch.float32, hidden.device)
        pairs, offsets = order_pairs(routed, workload, [*plan.cpu, *plan.gpu])
        step = Step(layer, workload, pairs, offsets, self.device.adopt(hidden.contiguous()), rows)
        step.turn, begun = len(plan.cpu), False
        if plan.cpu:
            step.staged = self._host_experts.stage(step, len(plan.cpu))
        for on_cpu, fetched in self._loans.portions(layer, plan, missing):
            if on_cpu:
                self._host_experts.start(step, on_cpu)
            if not begun:
                self._start_present(step, plan, view)
                begun = True
            self._fetch(step, fetched, view)
        return step

    def _sum(self, step: Any, weights: Tensor, hidden: Tensor) -> Tensor:
        """Queue the way up of what the CPU computes, and the weighted sum of all rows: the layer's output, like hidden."""
        device, rows, staged = self.device, step.rows, step.staged
        if staged is not None:  # only now: a queue that waits for a thread may hold up whoever fills it
            self._host_experts.bring_up(staged)
        out = device.adopt(torch.empty_like(hidden))
        device.launch(
            self._compute,
            partial(join, rows.tensor, staged, weights, out.tensor),
            (rows,) if staged is None else (rows, staged.rows),
            (out,) if staged is None else (out, rows),
            self._costs.launch,
            label=f"join {step.layer}",
        )
        result = device.release(out)
        device.release(step.x)
        return result

    def _foreseen(
        self,
        layer: int,
        tokens: int,
        later: int | None,
        ahead: Tensor | None,
        workload: Sequence[int],
        signals: Signals | None,
    ) -> Sequence[tuple[int, Sequence[float]]]:
        """What layers from `later` on are expected to need: from the ids predicted of them, or from the policy's own
        forecast."""
        if later is not None and ahead is not None:
            parts = (
                [ahead] if len(ahead) == tokens else list(ahead.view(-1, tokens, ahead.shape[1]))
            )  # a layer each
            return [(later + i, count_pairs(part, self._experts)) for i, part in enumerate(parts)]
        if self._on_cpu or not self.residency.scratch_slots:
            return ()
        return self.decisions.foresee(layer, workload, signals)

    def _routing(
        self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor, predicted: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The step's ids, and those predicted of a later layer, int64 on the host: one copy for both."""
        if predicted is not None and ids.device != CPU:
            both = torch.cat((ids, predicted)).cpu()
            ids, predicted = both[: len(ids)], both[len(ids) :]
        self.device.synchronize(self.device.mark(self._compute))
        return ids.cpu().contiguous(), None if predicted is None else predicted.contiguous()

    def _start_present(self, step: Any, plan: LayerPlan, view: ResidencyView) -> None:
        """Queue launches of residents and of experts in flight."""
        residency, layer, experts = self.residency, step.layer, plan.gpu
        for expert in residency.scratch(layer):
            if expert not in experts:  # late or wasted: nothing will read it
                residency.release(layer, expert)
        residents = sum([expert in view.resident for expert in experts])
        if residents:
            self._launch(step, experts[:residents])
        for expert in experts[residents : len(experts) - len(plan.fetch)]:  # in flight
            self._launch(step, (expert,))
            if not residency.is_resident(layer, expert):
                step.recyclable.append(expert)

    def _fetch(self, step: Any, experts: Sequence[int], view: ResidencyView) -> None:
        """Queue demanded copies and their launches, in groups; scratch slots recycle from the oldest launch on."""
        residency, group = self.residency, group_size(view.slots)
        for first in range(0, len(experts), group):
            fetched = experts[first : first + group]
            while residency.free_slots() < len(fetched):
                residency.release(step.layer, step.recyclable.popleft())
            residency.fetch(step.layer, *fetched)
            self._launch(step, fetched)
            step.recyclable += fetched

    def _launch(self, step: Any, experts: Sequence[int]) -> None:
        """One grouped launch of experts whose slots are, or are about to be, filled, and whose turn in the plan comes."""
        layer, costs, workload, x, rows = step.layer, self._costs, step.workload, step.x, step.rows
        offsets = step.offsets[step.turn : step.turn + len(experts) + 1]
        step.turn += len(experts)
        buffers = self.residency.slots(layer, experts)
        records = [buffer.tensor for buffer in buffers]
        self.device.launch(
            self._compute,
            partial(self._kernel, self._layouts[layer], records, offsets, step.pairs, x.tensor, rows.tensor),
            (*buffers, x),
            (rows,),
            costs.launch + sum([costs.gpu[workload[expert]] for expert in experts]),
            label=f"experts {layer}.{experts[0]}",
        )

    def _tick(self, layer: int, counters: LayerCounters) -> float:
        """Note a layer's start."""
        now = self.device.now()
        self.period.start(layer, now)
        # What the streams did until now was not this layer's experts, but for those that a lossy system put off to it.
        counters.cpu_seconds += self._busy().get(HOST, 0.0)
        return now

    def _busy(self) -> dict[str, float]:
        busy = self.device.busy_seconds()
        self._copying += busy.get(COPY, 0.0)
        return busy

    @staticmethod
    def _count(counters: LayerCounters, pairs: int, plan: LayerPlan, layout: ExpertLayout) -> None:
        counters.steps += 1
        counters.routed_tokens += pairs
        counters.cpu += len(plan.cpu)
        counters.fetched += len(plan.fetch)
        counters.expert_bytes += (len(plan.cpu) + len(plan.gpu)) * layout.weight_bytes
        counters.link_bytes += len(plan.fetch) * layout.record_bytes

    def account(self, counters: LayerCounters, started: float) -> None:
        """Count the time since `started`, and what the streams did in it."""
        counters.seconds += self.device.now() - started
        for stream, seconds in self._busy().items():
            if stream == COPY:
                counters.link_seconds += seconds
            elif stream == HOST:
                counters.cpu_seconds += seconds
            elif stream == COMPUTE:
                counters.accelerator_seconds += seconds
