"""KTransformers: a mask says which experts are on the accelerator; long prompts are computed there layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from functools import partial
from random import Random
from typing import Literal

import numpy as np

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.assign.cpu_on_miss import Policy as CpuOnMiss
from dali.policies.assign.gpu import all_gpu
from dali.policies.cache import CachePolicy, Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.signals import Signals
from dali.systems import System
from dali.systems._lossy import KEPT, LATER, LossyParts, Rerouted, Routed, shared
from dali.systems._popular import PopularCache, place
from dali.systems._prompt import Prompt

Mask = Literal["uniform", "front-loading", "random"]

LONG = 400  # tokens of a step, from which on its layers are computed on the accelerator
DEFERRED = 2  # experts of a token, as in published commands


class Assign(CpuOnMiss):
    """The mask's experts on the accelerator, the others on the CPU; from LONG tokens on all on the accelerator."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        if sum(workload) >= LONG * self._top_k:
            return all_gpu(workload, view, costs)
        return super().assign(layer, workload, view, costs)


class Cache(CachePolicy):
    """The starting set is the mask. uniform: the first ids of each layer; front-loading: whole layers from the first on; random:
    anywhere. With `update` a long prompt re-chooses a layer's set by its tokens; nothing else moves."""

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        capacity: int,
        seed: int,
        mask: Mask,
        prompt: Prompt,
        update: bool = True,
    ) -> None:
        super().__init__(layers, experts, capacity, seed)
        self.mask = mask
        self.update = update
        self._top_k = top_k
        self._prompt = prompt

    def initial(self, layer: int) -> tuple[int, ...]:
        slots = self.layers * self.capacity
        if self.mask == "uniform":
            return tuple(range(self.capacity))
        if self.mask == "front-loading":
            return tuple(range(min(max(slots - layer * self.experts, 0), self.experts)))
        anywhere = Random(self.seed).sample(range(self.layers * self.experts), slots)
        return tuple(sorted(place % self.experts for place in anywhere if place // self.experts == layer))

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        long = self._prompt.here and sum(workload) >= LONG * self._top_k
        return place(workload, resident, protected) if self.update and long else []


def deferred(weights: Sequence[float], count: int) -> list[int]:
    """Lossy: which of one token's experts join the next layer's output instead of this one's, the `count` of least
    weight, as slots in the order of `weights`; ties defer the later one. At least one stays."""
    order = sorted(range(len(weights)), key=lambda slot: (weights[slot], -slot))
    return sorted(order[: min(count, len(weights) - 1)])


def reroute(routed: Routed) -> Rerouted | None:
    """Lossy: each token's least weighty experts join the next layer, where they are the CPU's and no token of the step wants them
    at once; nothing is put off in the last layer."""
    if routed.layer == routed.layers - 1:
        return None
    fates = np.full(routed.ids.shape, KEPT)
    for row, weights in zip(fates, routed.weights.tolist(), strict=True):
        row[deferred(weights, DEFERRED)] = LATER
    here = np.isin(routed.ids, list(routed.resident))
    return Rerouted(routed.ids, routed.weights, np.where(here, KEPT, shared(fates, routed.ids)))


def policies(
    layers: int, experts: int, top_k: int, capacity: int, seed: int = 0, mask: Mask = "uniform"
) -> Policies:
    prompt = Prompt()
    cache = Cache(layers, experts, top_k, capacity, seed, mask, prompt)
    return Policies(Assign(top_k), create("prefetch", "none"), cache, prompt.begin)


def policies_by_frequency(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    cache = PopularCache(layers, experts, capacity, seed)
    return Policies(Assign(top_k), create("prefetch", "none"), cache)


SYSTEM = System(
    name="ktransformers",
    title="KTransformers",
    create=policies,
    source=(
        "KTransformers, SOSP 2025, doi 10.1145/3731569.3764843; github.com/kvcache-ai/ktransformers and "
        "github.com/kvcache-ai/sglang"
    ),
    differs=(
        "The masks are the code's, which this follows. The token threshold is a setting there, 400 in a published command. The "
        "frequency mask needs recorded counts: here those of each layer's first 512 (token, expert) pairs, with equal slots a "
        "layer."
    ),
    lossy=("expert deferral",),
    parts=LossyParts(reroute=reroute),
    variants={
        "frequency": policies_by_frequency,
        "front-loading": partial(policies, mask="front-loading"),
        "random": partial(policies, mask="random"),
    },
)
