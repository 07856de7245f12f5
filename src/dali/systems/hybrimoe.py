"""HybriMoE: a simulated hybrid schedule, minus-recent-score caching, impact-driven prefetching.

The schedule: residents by load, high first, then misses by load, high first. The accelerator takes from the front, a miss
after its copy; the CPU takes from the back; whichever would be done first takes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies
from dali.policies.cache import CachePolicy, Swap, fill
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast, PrefetchPolicy
from dali.policies.signals import Signals
from dali.systems import System

ALPHA = 0.5
LOOK_AHEAD = 3  # layers


def schedule(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> tuple[LayerPlan, float]:
    """The plan, and its seconds in HybriMoE's own simulation, which knows no launches and no handover. An expert in flight is a
    miss whose copy is under way."""
    active = sorted((-tokens, expert) for expert, tokens in enumerate(workload) if tokens)
    residents = [expert for _, expert in active if expert in view.resident]
    landing = [expert for expert in view.landing() if workload[expert]]
    absent = [expert for _, expert in active if expert not in view.resident and expert not in view.in_flight]
    queue = [*residents, *landing, *absent]
    cpu: list[int] = []
    gpu: list[int] = []
    cpu_end = gpu_end = 0.0
    link_end = max([view.link_free, *view.in_flight.values()])
    front, back = 0, len(queue) - 1
    while front <= back:
        first, last = queue[front], queue[back]
        if first in view.resident:
            landed = 0.0
        elif first in view.in_flight:
            landed = view.in_flight[first]
        else:
            landed = link_end + costs.link if view.slots else float("inf")
        ahead = max(gpu_end, landed) + costs.gpu[workload[first]]
        if ahead <= cpu_end + costs.cpu[workload[last]]:
            gpu.append(first)
            gpu_end = ahead
            if front >= len(residents) + len(landing):
                link_end = landed
            front += 1
        else:
            cpu.append(last)
            cpu_end += costs.cpu[workload[last]]
            back -= 1
    fetch = gpu[len(residents) + len(landing) :]
    return LayerPlan(tuple(cpu), tuple(gpu), tuple(fetch)), max(cpu_end, gpu_end)


class Assign:
    """The schedule's plan."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return schedule(workload, view, costs)[0]


class Cache(CachePolicy):
    """MRS: S = a TopP(s) + (1 - a) S a step, with TopP the router scores s but for those below the highest 2 top_k, which count
    as 0; a fetched expert replaces the resident of least S. A step's s is the mean over its tokens."""

    signals = frozenset({"scores"})

    def __init__(self, layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._kept = min(2 * top_k, experts)
        self._scores = np.zeros((layers, experts))

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        scores = self._scores[layer]
        scores *= 1 - ALPHA
        scores += ALPHA * self._top(workload, signals)
        return fill(scores.tolist(), workload, resident, fetched, protected)

    def _top(self, workload: Sequence[int], signals: Signals | None) -> NDArray[np.float64]:
        """Mean over tokens of TopP(s). Where scores are missing: of the chosen experts' weights; without those, of 1 / top_k."""
        mean = np.zeros(self.experts)
        if signals is not None and signals.scores is not None:
            top = np.argsort(-signals.scores, axis=1, kind="stable")[:, : self._kept]
            np.add.at(mean, top, np.take_along_axis(signals.scores, top, axis=1))
            return mean / len(top)
        if signals is not None and signals.weights is not None:
            np.add.at(mean, signals.ids, signals.weights)
            return mean / len(signals.ids)
        return np.asarray(workload) / max(sum(workload), 1)


class Prefetch(PrefetchPolicy):
    """The copy that shortens a later layer's schedule most, again and again while the link is idle before the next layer.
    Candidates are the experts that the next three gates choose on the present gate input; ties to the nearer layer, then to the
    lower id."""

    predictor = "next_gate"
    depth = LOOK_AHEAD

    def plan(self, forecasts: Sequence[Forecast], costs: ExpertCosts) -> list[tuple[int, int]]:
        chosen: list[tuple[int, int]] = []
        views = {forecast.layer: forecast.view for forecast in forecasts}
        idle = forecasts[0].idle if forecasts else 0.0  # until the next layer's own copies
        while True:
            best, pick = 0.0, None
            for layer, workload, _, _ in (
                forecasts if (len(chosen) + 1) * costs.link_contended <= idle else ()
            ):
                view = views[layer]
                if view.slots - len(view.in_flight) - sum(other != layer for other, _ in chosen) <= 0:
                    continue
                tokens = [round(count) for count in workload]
                before = schedule(tokens, view, costs)[1]
                loads = set()
                for expert, load in enumerate(tokens):
                    there = expert in view.resident or expert in view.in_flight
                    if not load or there or load in loads:  # equal loads gain equally
                        continue
                    loads.add(load)
                    gain = before - schedule(tokens, _with(view, expert), costs)[1]
                    if gain > best:
                        best, pick = gain, (layer, expert)
            if pick is None:
                return chosen
            chosen.append(pick)
            views[pick[0]] = _with(views[pick[0]], pick[1])


def _with(view: ResidencyView, expert: int) -> ResidencyView:
    return replace(view, in_flight={**view.in_flight, expert: 0.0})


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(Assign(), Prefetch(), Cache(layers, experts, top_k, capacity, seed))


SYSTEM = System(
    name="hybrimoe",
    title="HybriMoE",
    create=policies,
    source="HybriMoE, arXiv 2504.05897; github.com/PKU-SEC-Lab/HybriMoE",
    differs=(
        "The code schedules only in decoding and sends all of prefill to the accelerator, prefetches the next layer's highest S "
        "instead of simulating, keeps P at 12 and looks at a batch's first token; this follows the paper. The schedule is the "
        "code's, with this project's cost tables for its typed-in times. Prefetched experts wait in scratch slots and enter the "
        "cache when they are used."
    ),
    signals=frozenset({"scores", "gate_inputs"}),
)
