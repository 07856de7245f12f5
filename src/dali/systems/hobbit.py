"""HOBBIT: a cache ranked by recency, frequency, precision and layer distance; look-ahead to the first layer with a miss; misses
of little weight in low precision or left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Literal

import numpy as np

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.cache import Swap
from dali.policies.prefetch import Forecast, PrefetchPolicy
from dali.policies.signals import Signals, Step
from dali.systems import System
from dali.systems._lossy import DROPPED, KEPT, LossyParts, Rerouted, Routed, shared
from dali.systems._lossy import LOW as LOW_PRECISION
from dali.systems._pool import PooledCache

WEIGHTS = (0.25, 0.25, 0.25, 0.25)  # of recency, frequency, high precision, layer distance
LOOK_AHEAD = 4  # layers
HIGH, LOW = (
    0.6,
    0.9,
)  # the weight ranked above an expert, up to which it is loaded in high and in low precision

Precision = Literal["high", "low", "skip"]
FATES: dict[Precision, int] = {"high": KEPT, "low": LOW_PRECISION, "skip": DROPPED}


class Cache(PooledCache):
    """Evicts the least w1 R/T + w2 F/T + w3 H/T + w4 (1 - d/L) of all layers' experts, over the steps T of the present requests:
    R the step of the last use, F the uses, H those in high precision (here all), d the layers until the expert's layer comes."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._requests: set[int] = set()
        self._forget()

    def begin(self, step: Step) -> None:
        """Statistics start anew when none of the step's requests was in the last step."""
        requests = set(step.sequences.tolist())
        if not requests & self._requests:
            self._forget()
        self._requests = requests

    def _forget(self) -> None:
        self._steps = 0
        self._last_use = np.zeros((self.layers, self.experts))
        self._uses = np.zeros((self.layers, self.experts))

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        if layer == 0 or not self._steps:
            self._steps += 1
        used = np.asarray(workload) > 0
        self._last_use[layer, used] = self._steps
        self._uses[layer, used] += 1
        recency, frequency, precision, nearness = WEIGHTS
        distance = (np.arange(self.layers) - layer - 1) % self.layers  # the next layer is the nearest
        ranks = (recency * self._last_use + (frequency + precision) * self._uses) / self._steps
        ranks += nearness * (1 - distance / self.layers)[:, None]
        return self.stay(layer, ranks, workload, resident, fetched, protected)


class Prefetch(PrefetchPolicy):
    """The misses of the first layer ahead that has any, busiest first, as many as there are slots."""

    predictor = "next_gate"
    depth = LOOK_AHEAD

    def plan(self, forecasts: Sequence[Forecast], costs: ExpertCosts) -> list[tuple[int, int]]:
        for layer, workload, view, _ in forecasts:
            there = view.resident | view.in_flight.keys()
            misses = [expert for expert, tokens in enumerate(workload) if tokens and expert not in there]
            if misses:
                misses.sort(key=lambda expert: -workload[expert])
                return [(layer, expert) for expert in misses[: max(view.slots - len(view.in_flight), 0)]]
        return []


def precisions(weights: Sequence[float]) -> list[Precision]:
    """Lossy: how to load each of one token's experts if it is a miss. `weights`: the experts' gate weights. An expert's
    score is the share of weight ranked above it, itself left out; ties rank the earlier one above."""
    order = sorted(range(len(weights)), key=lambda slot: -weights[slot])
    chosen: list[Precision] = ["skip"] * len(weights)
    above, total = 0.0, sum(weights)
    for slot in order:
        chosen[slot] = "high" if above <= HIGH * total else "low" if above <= LOW * total else "skip"
        above += weights[slot]
    return chosen


def reroute(routed: Routed) -> Rerouted:
    """Lossy: misses in low precision or left out; an expert is loaded once a step, in the highest precision a token asks for."""
    names: list[Precision] = [precision for row in routed.weights.tolist() for precision in precisions(row)]
    fates = np.array([FATES[name] for name in names]).reshape(routed.ids.shape)
    here = np.isin(routed.ids, list(routed.resident))
    return Rerouted(routed.ids, routed.weights, np.where(here, KEPT, shared(fates, routed.ids)))


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    cache = Cache(layers, experts, capacity, seed)
    return Policies(create("assign", "gpu"), Prefetch(), cache, cache.begin)


def policies_with_cpu(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    cache = Cache(layers, experts, capacity, seed)
    return Policies(create("assign", "cpu_on_miss"), Prefetch(), cache, cache.begin)


SYSTEM = System(
    name="hobbit",
    title="HOBBIT",
    create=policies,
    source="HOBBIT, arXiv 2411.01433",
    differs=(
        "Its four weights are not known here: they are equal. The sign of the layer distance is inferred: the layer needed "
        "soonest ranks highest. It looks ahead at most 4 layers. Experts keep high precision. With its lossy parts on, experts "
        "in low precision are computed by the CPU and enter no cache, where it copies and caches them; they have 2 bits beside "
        "quantized experts and 4 beside float ones, both in w4's bytes."
    ),
    lossy=("low precision and skipping of misses",),
    parts=LossyParts(reroute=reroute, low=True),
    signals=frozenset({"gate_inputs"}),
    variants={"cpu": policies_with_cpu},
)
