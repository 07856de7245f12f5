"""What no policy can beat: the offline optimum of a shared cache, a layer's least makespan, the optimum of an assignment."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from dali.hardware.cost import ExpertCosts
from dali.policies.assign.two_lane import two_lane
from dali.policies.lanes import MOST_TOGETHER, makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.eviction import active_experts
from dali.replay.steps import Forward
from dali.replay.traces.trace import Array, Trace

FINENESS = 32  # of the grid of multipliers
BLOCK = 2**20  # accesses turned to Python's numbers at a time
MOST_NODES = 20_000  # of a search for the optimum


def pooled_belady(trace: Trace, steps: Sequence[Forward], slots: int) -> float:
    """The hit rate of `pooled_hits`, which starts with those used first."""
    hits, lookups = pooled_hits(trace, steps, slots)
    return hits / lookups


def pooled_hits(trace: Trace, steps: Sequence[Forward], slots: int, cold: bool = False) -> tuple[int, int]:
    """Hits and lookups of one cache of `slots` experts for all layers, event-atomic, that evicts the one whose next use is
    farthest away, those just used included: the most hits possible. It starts with those used first, or `cold`: empty."""
    active = [active_experts(trace, step) for step in steps]
    keys = np.concatenate(active)
    events = (
        np.repeat(np.arange(len(active)), [len(flat) for flat in active]) * trace.layers
        + keys // trace.experts
    )
    order = np.argsort(keys, kind="stable")
    again = keys[order[1:]] == keys[order[:-1]]
    next_use = np.full(len(keys), 2**62)
    next_use[order[:-1][again]] = events[order[1:][again]]

    first = np.flatnonzero(np.insert(~again, 0, True)) if len(order) else order
    soonest = order[first][np.argsort(events[order[first]], kind="stable")][: 0 if cold else slots]
    cached = dict(
        zip(keys[soonest].tolist(), events[soonest].tolist(), strict=True)
    )  # layer x experts + expert -> next use
    farthest = [(-use, key) for key, use in cached.items()]  # a heap; entries whose use has come are stale
    heapq.heapify(farthest)
    hits, event = 0, -1
    for begin in range(0, len(keys), BLOCK):
        block = slice(begin, begin + BLOCK)
        accesses = zip(keys[block].tolist(), next_use[block].tolist(), events[block].tolist(), strict=True)
        for key, use, turn in accesses:
            if turn != event:
                event = turn
                while len(cached) > slots:
                    last, evicted = heapq.heappop(farthest)
                    if cached.get(evicted) == -last:
                        del cached[evicted]
            hits += key in cached
            cached[key] = use
            heapq.heappush(farthest, (-use, key))
    return hits, len(keys)


class LeastSeconds:
    """What no plan of the lane model gets below, whichever `resident` experts of a layer are on the accelerator.

    For any multipliers a + b + c = 1, none negative, the longest of the CPU's, the accelerator's and the link's time is at least
    a CPU + b GPU + c link, summed over the experts, each wherever that is cheapest. Plans that leave the CPU idle, which saves
    its handover, are bounded apart.
    """

    def __init__(self, resident: int, costs: ExpertCosts) -> None:
        self._resident = resident
        self._costs = costs
        self._known: dict[tuple[int, ...], Array] = {}
        self.link_weights = np.arange(FINENESS + 1) / FINENESS
        self._multipliers = [
            np.array([(a, FINENESS - c - a, c) for a in range(FINENESS - c + 1)]) / FINENESS
            for c in range(FINENESS + 1)
        ]

    def makespan(self, workload: Sequence[int]) -> float:
        """Seconds of one layer whose copies all start with it."""
        return float(self.weighted(workload).max())

    def run(self, workloads: Iterable[Sequence[int]], dense: Sequence[float]) -> float:
        """Seconds of many layers one after another, each after `dense` seconds of its own; experts may be copied at any time
        before their layer, as all copies together still take the link."""
        total = np.zeros(FINENESS + 1)
        for workload, before in zip(workloads, dense, strict=True):
            total += self.weighted(workload) + before * (1 - self.link_weights)
        return float(total.max())

    def weighted(self, workload: Sequence[int]) -> Array:
        """The bound for each weight c of the link in `link_weights`."""
        tokens = tuple(sorted([tokens for tokens in workload if tokens]))
        if tokens not in self._known:
            self._known[tokens] = np.array([self._bound(grid, tokens) for grid in self._multipliers])
        return self._known[tokens]

    def _bound(self, grid: Array, workload: Sequence[int]) -> float:
        costs = self._costs
        a, b, c = grid[:, :1], grid[:, 1:2], grid[:, 2:]
        gpu = np.array([costs.gpu[tokens] for tokens in workload])
        cpu = a * np.array([costs.cpu[tokens] for tokens in workload])
        here, fetched = b * gpu, b * (gpu + costs.launch / MOST_TOGETHER) + c * costs.link
        with_cpu = self._cheapest(np.minimum(cpu, here), np.minimum(cpu, fetched)) + a[:, 0] * costs.handover
        without = self._cheapest(here[:1], fetched[:1])  # a = 0
        return float(min(with_cpu.max(), without.max()))

    def _cheapest(self, here: Array, fetched: Array) -> Array:
        """Sums over experts, those residents whom it saves most."""
        savings = np.sort(fetched - here, axis=1)[:, ::-1][:, : self._resident]
        total: Array = fetched.sum(axis=1) - savings.sum(axis=1)
        return total


class Optimum(NamedTuple):
    """`plan` takes `seconds`. `bound`, which equals that unless the search was cut short, is what no plan of those that
    best_assignment chooses from takes less than (but for 1e-9 of it): a plan with another order of copies may, where copies wait
    for slots or go in groups."""

    plan: LayerPlan
    seconds: float
    bound: float


def best_assignment(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> Optimum:
    """The plan of least makespan among those that copy experts with the longest compute first, by branch and bound over experts
    that are alike (equal workload, equally there).

    That order is best for copies of equal length (Johnson's rule), unless copies wait for slots or go in groups. ValueError: an
    expert is in flight, which is not covered.
    """
    if view.in_flight:
        raise ValueError(f"experts in flight are not covered: {view.in_flight}")
    best = two_lane(workload, view, costs)
    least = makespan(best, workload, view, costs)
    cpu, gpu = costs.cpu, costs.gpu

    def kind(expert: int) -> tuple[float, int, bool]:
        return -gpu[workload[expert]], workload[expert], expert not in view.resident

    active = sorted([expert for expert, tokens in enumerate(workload) if tokens], key=kind)
    groups = [(key, list(members)) for key, members in groupby(active, key=kind)]
    rest = [0.0]  # of the groups from each on: the least sum of both devices' times
    for (_, tokens, absent), members in reversed(groups):
        anywhere = min(cpu[tokens], gpu[tokens]) if view.slots or not absent else cpu[tokens]
        rest.append(rest[-1] + len(members) * anywhere)
    rest.reverse()
    nodes, unsearched = 0, float("inf")

    def search(turn: int, on_gpu: list[int], on_cpu: list[int], lanes: tuple[float, float, float]) -> None:
        nonlocal best, least, nodes, unsearched
        at_least = max(*lanes, (lanes[0] + lanes[1] + rest[turn]) / 2)
        if at_least >= least * (1 - 1e-9):
            return
        nodes += 1
        if nodes > MOST_NODES:
            unsearched = min(unsearched, at_least)
            return
        if turn == len(groups):
            residents = [expert for expert in on_gpu if expert in view.resident]
            fetch = [expert for expert in on_gpu if expert not in view.resident]
            plan = LayerPlan(tuple(on_cpu), (*residents, *fetch), tuple(fetch))
            seconds = makespan(plan, workload, view, costs)
            if seconds < least:
                best, least = plan, seconds
            return
        (_, tokens, absent), members = groups[turn]
        for count in range(len(members) if view.slots or not absent else 0, -1, -1):
            left = len(members) - count
            spent = (left * cpu[tokens], count * gpu[tokens], count * costs.link * absent)
            search(
                turn + 1,
                on_gpu + members[:count],
                on_cpu + members[count:],
                (lanes[0] + spent[0], lanes[1] + spent[1], lanes[2] + spent[2]),
            )

    search(0, [], [], (0.0, 0.0, 0.0))
    return Optimum(best, least, min(least, unsearched))
