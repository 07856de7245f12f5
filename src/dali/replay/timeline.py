"""The replay of one cell: a live run's decisions on a modelled clock, computing nothing.

A layer's event goes as in runtime.executor: dense part; prediction; the assignment plans on what it sees; the layer takes the
makespan of its plan in the lane model (policies.lanes); swaps that exchange roles; prefetches behind the demanded copies; swaps
that copy. All of the event's experts are classified once, against the residents before it, and nobody is evicted before its end.

With experts on disk (replay.disk) those that the layer computes on the CPU or copies, and that are not in RAM, are read while it
runs; no other expert is copied than those in RAM.

Unlike in a live run, copies queued in the background progress exactly: at the contended pace while the CPU computes, whichever
layer it is in. A background copy does not wait for the slot it overwrites, and activations take the lane model's fixed handover.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from dali.hardware.cost import CostModel
from dali.policies import Policies
from dali.policies.decisions import Decisions
from dali.policies.guard import Guards, Period
from dali.policies.lanes import accelerator_end
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast, PrefetchPolicy
from dali.policies.signals import Signals, Step
from dali.replay.disk.tier import Tier
from dali.replay.residency import Link, Residency
from dali.replay.shapes import Shape
from dali.replay.steps import Forward
from dali.replay.traces.trace import Array, Trace
from dali.runtime.journal import Journal

DRAWN = 6  # layers of a step are kept to be drawn
FORESEEING = "next_router"  # whose predictions read ahead, as in live runs
SCRATCH = 16  # slots, as in a live run, beside the residents'


class Drawn(NamedTuple):
    """One layer's event: seconds from the step's start at which its dense part and its experts begin, and what was planned."""

    dense_start: float
    start: float
    plan: LayerPlan
    workload: list[int]
    view: ResidencyView


@dataclass
class Result:
    """Totals. Seconds are modelled; `hits`, `lookups` [layers] count active experts an event, found resident before it."""

    hits: Array
    lookups: Array
    seconds: float = 0.0  # of steps of generated tokens
    tokens: int = 0
    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    on_accelerator: int = 0  # lookups computed there
    prefetched: int = 0  # of those, found in scratch
    copies: int = 0
    drawn: list[Drawn] = field(default_factory=list)  # the first layers of one step

    @property
    def hit_rate(self) -> float:
        return float(self.hits.sum() / max(self.lookups.sum(), 1))


class Timeline:
    """Replays steps of one trace under one set of policies. `guarded`: dali's guards may rest prefetches and swaps. `tier`: where
    the experts are on disk; None: all are in RAM."""

    def __init__(
        self,
        trace: Trace,
        policies: Policies,
        shape: Shape,
        model: CostModel,
        capacity: int,
        guarded: bool,
        tier: Tier | None = None,
    ) -> None:
        self._trace = trace
        self._policies = policies
        self.costs = model.costs
        self.link = Link(model.costs.link, model.costs.link_contended)
        self._decisions = decisions = Decisions(policies, trace.layers, trace.experts)
        initial = [decisions.initial(layer) if capacity else () for layer in range(trace.layers)]
        self.residency = Residency(initial, SCRATCH if capacity else 0, self.link)
        self._predicted = recorded_predictions(trace, policies.prefetch) if capacity else {}
        self._tier = tier
        reads_ahead = tier is not None and tier.ahead is not None
        self._predicted_ahead = trace.predicted.get((FORESEEING, 1)) if reads_ahead else None
        self._foresees = self.predictor is None
        self._guards = Guards(decisions.assign, model.costs, trace.layers, guarded, self.predicts)
        self.journal: Journal | None = None  # where somebody asks why
        self._now = self._step_began = 0.0
        self._period = Period()
        self._dense = dense_seconds(shape, model)
        self._predict = cache(
            lambda tokens: model.dense(
                2 * shape.hidden * trace.experts, shape.hidden * trace.experts, tokens, 1
            )
        )
        self.result = Result(np.zeros(trace.layers, np.int64), np.zeros(trace.layers, np.int64))

    @property
    def predictor(self) -> str | None:
        """What the prefetch policy asks for."""
        return self._policies.prefetch.predictor

    @property
    def predicts(self) -> bool:
        """Whether the policy gets the predictions it asks for."""
        return bool(self._predicted)

    @property
    def predicts_ahead(self) -> bool:
        """Whether reading ahead gets the predictions it asks for."""
        return self._predicted_ahead is not None

    def run(self, steps: Sequence[Forward]) -> Result:
        result = self.result
        drawn = len(steps) // 2
        for index, step in enumerate(steps):
            began = self._now
            if self._tier is not None:
                self._tier.begin(step.prefill)
            self._step(step, draw=index == drawn)
            if step.prefill:
                result.prefill_seconds += self._now - began
                result.prefill_tokens += len(step.rows)
            else:
                result.seconds += self._now - began
                result.tokens += len(step.rows)
            if self._tier is not None:
                self._tier.end(self._now - began)
        result.copies = self.residency.copies
        return result

    def _step(self, step: Forward, draw: bool) -> None:
        trace, rows = self._trace, step.rows
        self._step_began = self._now
        if self._policies.begin is not None:
            embeddings = None if trace.embeddings is None else trace.embeddings[rows]
            self._policies.begin(Step(step.sequences, np.full(len(rows), step.prefill), embeddings))
        recorded = (trace.ids, trace.weights, trace.scores, trace.gate_inputs)
        routing = [None if field is None else field[rows] for field in recorded]
        experts = trace.experts
        chosen = trace.ids[rows].transpose(1, 0, 2).reshape(trace.layers, -1).tolist()
        for layer, routed in enumerate(chosen):
            signals = Signals(*[None if field is None else field[:, layer] for field in routing])  # type: ignore[arg-type]
            workload = [0] * experts
            for expert in routed:
                workload[expert] += 1
            self._layer(layer, workload, rows, signals, draw and layer < DRAWN)

    def _layer(self, layer: int, workload: list[int], rows: Array, signals: Signals, draw: bool) -> None:
        residency, costs, link, guards = self.residency, self.costs, self.link, self._guards
        began = self._now
        before = self._dense(len(rows))
        predictions = sum([layer + ahead < self._trace.layers for ahead in self._predicted])
        predicts = predictions > 0 and guards.prefetch.on
        predict_seconds = predictions * self._predict(len(rows)) if predicts else 0.0
        ahead_seconds = self._predicts_ahead(layer, predicts) * self._predict(len(rows))
        link.advance(before + predict_seconds + ahead_seconds)
        self._now += before + predict_seconds + ahead_seconds
        self._period.start(layer, self._now)

        view = residency.view(layer)
        plan = self._decisions.assign(layer, workload, view, costs)
        self._count(layer, workload, view, plan)
        if draw:
            seen = replace(view, resident=set(view.resident), in_flight=dict(view.in_flight))
            self.result.drawn.append(
                Drawn(began - self._step_began, self._now - self._step_began, plan, workload, seen)
            )
        waiting = residency.scratch(layer)
        guards.settle(layer, workload, view, plan, waiting, residency.residents(layer), predict_seconds)
        spanned = self._span(plan, workload, view)
        seconds, cpu_end, link_end = self._from_disk(layer, workload, rows, plan, view, spanned)

        self._demand(layer, plan, waiting)
        fetched = residency.scratch(layer)
        swaps = self._decisions.observe(
            layer,
            workload,
            residency.residents(layer),
            fetched,
            residency.unsettled(layer),
            signals,
            residency.residents,
        )
        if self._tier is not None:
            swaps = [swap for swap in swaps if swap.load in fetched or self._tier.holds(layer, swap.load)]
        swaps = guards.allow(layer, swaps, fetched, view.link_free)
        later = []
        for swap in swaps:
            if swap.load in fetched:
                residency.swap(layer, swap)
            else:
                later.append(swap)
        for expert in residency.scratch(layer):
            residency.release(layer, expert)
        copies = residency.copies
        if predicts or self._foresees:
            self._prefetch(layer, workload, rows, signals, link_end)
        guards.prefetches += residency.copies - copies
        for swap in later:
            residency.swap(layer, swap)
        guards.swaps += len(later)

        link.advance(link.work(seconds, cpu_end) - link.work(link_end, cpu_end))
        self._now += seconds + costs.launch  # the launch that sums the rows

    def _span(
        self, plan: LayerPlan, workload: Sequence[int], view: ResidencyView
    ) -> tuple[float, float, float]:
        """The layer's makespan, when the CPU is done, and when the last demanded copy has landed (0 without one); background
        copies at their real pace."""
        costs = self.costs
        cpu_end = costs.handover + sum([costs.cpu[workload[e]] for e in plan.cpu]) if plan.cpu else 0.0
        resident = [costs.gpu[workload[expert]] for expert in plan.gpu if expert in view.resident]
        seconds = costs.launch + sum(resident) if resident else 0.0
        if not plan.fetch and not view.in_flight:
            return max(cpu_end, seconds), cpu_end, 0.0
        if view.link_free:
            link = self.link
            in_flight = {expert: link.elapsed(due, cpu_end) for expert, due in view.in_flight.items()}
            view = replace(view, in_flight=in_flight, link_free=link.elapsed(view.link_free, cpu_end))
        log: list[tuple[float, float, float, float]] = []
        arrivals = [
            (view.in_flight[e], costs.gpu[workload[e]] + costs.launch if e in plan.gpu else 0.0)
            for e in view.landing()
        ]
        fetched = [costs.gpu[workload[expert]] + costs.launch for expert in plan.fetch]
        end = accelerator_end(seconds, arrivals, fetched, view, cpu_end, costs, log)
        if not plan.fetch:
            return max(cpu_end, end), cpu_end, 0.0
        self.link.advance(self.link.left)  # the background went first
        return max(cpu_end, end), cpu_end, log[-1][1]

    def _looks_ahead(self, layer: int) -> bool:
        """Whether experts of the next layer may be read before it is there."""
        known = self._predicted_ahead is not None and layer + 1 < self._trace.layers
        return known and self._tier is not None and self._tier.foresees

    def _predicts_ahead(self, layer: int, predicts: bool) -> bool:
        """Whether this layer predicts for reading ahead alone, and not for copying ahead as well."""
        return self._looks_ahead(layer) and not (predicts and self.predictor == FORESEEING)

    def _from_disk(
        self,
        layer: int,
        workload: Sequence[int],
        rows: Array,
        plan: LayerPlan,
        view: ResidencyView,
        spanned: tuple[float, float, float],
    ) -> tuple[float, float, float]:
        """What the layer `spanned` with all experts in RAM, as it is with those on disk; and what is to be read ahead."""
        tier = self._tier
        if tier is None:
            return spanned
        link_free = view.link_free * self.link.slowdown
        served = tier.serve(layer, workload, plan, view, self.costs, link_free, self._now)
        seconds, cpu_end, link_end = spanned
        if served.waited:
            tier.stall(max(served.end - seconds, 0.0))
            seconds = max(seconds, served.end)
            cpu_end, link_end = max(cpu_end, served.cpu), max(link_end, served.link_end)
        if self._looks_ahead(layer):
            assert self._predicted_ahead is not None
            dense, later = self._dense(len(rows)), layer + 1
            ids = self._predicted_ahead[rows, layer].tolist()
            tier.read_ahead(later, ids, self.residency.residents(later), seconds, dense, self._now)
        return seconds, cpu_end, link_end

    def _demand(self, layer: int, plan: LayerPlan, waiting: Sequence[int]) -> None:
        """Demanded experts pass through scratch slots, which recycle from the oldest launch on."""
        residency = self.residency
        on_accelerator = set(plan.gpu)
        for expert in waiting:
            if expert not in on_accelerator:
                residency.release(layer, expert)
        recyclable = deque(residency.scratch(layer))
        for expert in plan.fetch:
            if not residency.free_slots:
                residency.release(layer, recyclable.popleft())
            residency.demand(layer, expert)
            recyclable.append(expert)

    def _prefetch(
        self, layer: int, workload: Sequence[int], rows: Array, signals: Signals, demanded: float
    ) -> None:
        """Queue what the policy foresees; `demanded`: seconds the link is taken by the layer's own copies."""
        residency, experts = self.residency, self._trace.experts
        forecasts: list[tuple[int, Sequence[float]]] = []
        if self._foresees:
            forecasts = list(self._decisions.foresee(layer, workload, signals))
        for ahead, ids in self._predicted.items():
            if layer + ahead < self._trace.layers:
                expected = np.bincount(ids[rows, layer].ravel(), minlength=experts).tolist()
                forecasts.append((layer + ahead, expected))
        if not forecasts:
            return
        views = [(target, expected, residency.view(target)) for target, expected in forecasts]
        idle = [
            max(self._period.seconds * (target - layer) - view.link_free - demanded, 0.0)
            for target, _, view in views
        ]
        told = [Forecast(*one, seconds) for one, seconds in zip(views, idle, strict=True)]
        for target, expert in self._decisions.prefetch(layer, told, self.costs, residency.free_slots):
            if self._tier is None or self._tier.holds(target, expert):
                residency.fetch(target, expert)

    def _count(self, layer: int, workload: list[int], view: ResidencyView, plan: LayerPlan) -> None:
        result = self.result
        if self.journal is not None:
            self.journal.note(layer, workload, view, plan, self.residency.scratch(layer), self._now)
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        result.hits[layer] += len(view.resident & set(active))
        result.lookups[layer] += len(active)
        result.on_accelerator += len(plan.gpu)
        if view.in_flight:
            result.prefetched += sum([expert in plan.gpu for expert in self.residency.scratch(layer)])


def recorded_predictions(trace: Trace, policy: PrefetchPolicy) -> Mapping[int, Array]:
    """Distance -> predicted ids for what the policy asks; empty where it asks nothing, or the trace lacks one."""
    if policy.predictor is None:
        return {}
    wanted = range(policy.distance, policy.distance + policy.depth)
    keys = {ahead: (policy.predictor, ahead) for ahead in wanted if ahead < trace.layers}
    if not set(keys.values()) <= trace.predicted.keys():
        return {}
    return {ahead: trace.predicted[key] for ahead, key in keys.items()}


def dense_seconds(shape: Shape, model: CostModel) -> Callable[[int], float]:
    """tokens -> modelled seconds of a layer's dense part, the host's wait for its routing included."""
    return model.dense_seconds(shape.dense_bytes, shape.dense_parameters, shape.dense_kernels)
