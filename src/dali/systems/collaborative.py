"""CPU-GPU collaborative inference (Huang et al.): a miss is computed by the CPU at once and copied for later tokens.

The cache has `sets` index sets, one a layer from the first on, of `ways` slots each; the layers after them have none. Prompts are
computed on the CPU and leave the cache alone. Copies start when the link is free, at most `quota` a token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from functools import partial
from typing import Literal

from dali.errors import UsageError
from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.assign.cpu import all_cpu
from dali.policies.assign.cpu_on_miss import Policy as CpuOnMiss
from dali.policies.cache import CachePolicy, Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.signals import Signals
from dali.systems import System
from dali.systems._prompt import Prompt

Order = Literal["counter", "lru", "fifo"]


class Assign(CpuOnMiss):
    """Prompts on the CPU; in decoding residents on the accelerator and misses on the CPU."""

    def __init__(self, cache: Cache, prompt: Prompt) -> None:
        self._cache = cache
        self._prompt = prompt

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        self._cache.link_busy = view.link_free > 0
        return all_cpu(workload) if self._prompt.here else super().assign(layer, workload, view, costs)


class Cache(CachePolicy):
    """Misses, by id, replace the way of lowest rank that the step did not use.

    `order` says how ranks move. "counter": +1 on a hit, the set's highest + 1 on a fill. "lru": the step of the last use. "fifo":
    the step of the fill. Ties go to the lower id.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        capacity: int,
        seed: int,
        prompt: Prompt,
        order: Order = "counter",
        sets: int | None = None,
        quota: int | None = None,
    ) -> None:
        """`sets`: index sets, one a layer unless given; their ways share layers x capacity slots. `quota`: copies a step."""
        slots = layers * min(capacity, experts)
        self.sets = layers if sets is None else sets
        if not 1 <= self.sets <= layers:
            raise UsageError(f"A model of {layers} layers has no {sets} index sets.", f"Give 1 to {layers}.")
        super().__init__(layers, experts, min(slots // self.sets, experts), seed)
        self.order = order
        self.quota = quota
        self.link_busy = False
        self._prompt = prompt
        self._copies = 0
        self._step = 0
        self._ranks = [[0] * experts for _ in range(layers)]

    def initial(self, layer: int) -> tuple[int, ...]:
        return super().initial(layer) if layer < self.sets else ()

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        if layer == 0:
            self._copies = 0
            self._step += 1
        if self._prompt.here or not resident:
            return []
        ranks = self._ranks[layer]
        for expert in resident:
            if workload[expert] and self.order != "fifo":
                ranks[expert] = ranks[expert] + 1 if self.order == "counter" else self._step
        if self.link_busy:
            return []
        misses = [
            e for e, tokens in enumerate(workload) if tokens and e not in resident and e not in protected
        ]
        if self.quota is not None:
            misses = misses[: self.quota - self._copies]
        idle = [expert for expert in resident - protected if not workload[expert]]
        victims = sorted(idle, key=lambda expert: (ranks[expert], expert))
        swaps = [Swap(evict, load) for evict, load in zip(victims, misses, strict=False)]
        held = set(resident)
        for evict, load in ((swap.evict, swap.load) for swap in swaps):
            held.remove(evict)
            ranks[load] = (
                max((ranks[e] for e in held), default=0) + 1 if self.order == "counter" else self._step
            )
            held.add(load)
        self._copies += len(swaps)
        return swaps


def shapes(layers: int, experts: int, slots: int) -> list[tuple[int, int]]:
    """The sweep over (index sets, ways) that `slots` experts in all allow: for each number of sets the most ways."""
    found = [(sets, min(slots // sets, experts)) for sets in range(1, layers + 1)]
    return [(sets, ways) for sets, ways in found if ways]


def policies(
    layers: int, experts: int, top_k: int, capacity: int, seed: int = 0, order: Order = "counter"
) -> Policies:
    prompt = Prompt()
    cache = Cache(layers, experts, capacity, seed, prompt, order)
    return Policies(Assign(cache, prompt), create("prefetch", "none"), cache, prompt.begin)


SYSTEM = System(
    name="collaborative",
    title="CPU-GPU collaborative",
    create=policies,
    source=(
        "Huang, Lin, Lee: Efficient CPU-GPU Collaborative Inference for MoE-based LLMs on Memory-Limited Systems, ASP-DAC 2026, "
        "arXiv 2512.16473; github.com/elsa-lab/MoE-CPU-GPU-Collaborative-Inference"
    ),
    differs=(
        "The paper says LRU; the code's is a counter (hit + 1, fill highest + 1, evict the lowest), which this follows, with "
        "true LRU and FIFO as variants. One request at a time there; here a step of a batch counts as a token. One step's "
        "experts never evict each other. Its quota is not known here: none is set, but no copy starts behind another."
    ),
    variants={"lru": partial(policies, order="lru"), "fifo": partial(policies, order="fifo")},
)
