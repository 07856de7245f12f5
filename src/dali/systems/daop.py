"""DAOP: the prompt decides the placement, in decoding nothing moves; the CPU starts early on predicted experts."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

import numpy as np

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.cache import CachePolicy, Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.signals import Signals
from dali.systems import System
from dali.systems._lossy import KEPT, LossyParts, Rerouted, Routed
from dali.systems._prompt import Prompt

HOTTER = 1.05  # times the tokens of the expert it replaces
FIRST_PREDICTED = 5  # the first MoE layer that uses a prediction, made in the one before


class Assign:
    """Residents on the accelerator; another expert where it takes less, computed by the CPU or copied and computed. By id."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        here = [expert for expert in active if expert in view.resident]
        here += [expert for expert in view.landing() if workload[expert]]
        misses = [expert for expert in active if expert not in here]
        fetch = [
            expert
            for expert in misses
            if view.slots and costs.cpu[workload[expert]] >= costs.link + costs.gpu[workload[expert]]
        ]
        return LayerPlan(tuple(e for e in misses if e not in fetch), (*here, *fetch), tuple(fetch))


class Cache(CachePolicy):
    """After each step of a prompt the hottest absent experts, at most half of all, are swapped for the coldest residents, pair by
    pair, where they have more than 1.05 times their tokens. Ties go to the lower id."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int, prompt: Prompt) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._prompt = prompt

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        if not self._prompt.here:
            return []
        absent = set(range(self.experts)) - resident - protected
        hot = sorted(absent, key=lambda expert: (-workload[expert], expert))[: self.experts // 2]
        cold = sorted(resident - protected, key=lambda expert: (workload[expert], expert))
        pairs = zip(cold, hot, strict=False)
        return [Swap(evict, load) for evict, load in pairs if workload[load] > HOTTER * workload[evict]]


def predicted_routing(
    layer: int, scores: Sequence[float], top_k: int, resident: Set[int]
) -> list[tuple[int, float]] | None:
    """Lossy: the experts and weights one token gets in MoE layer `layer` instead of its routing, None where the routing
    stands. `scores`: the next gate's predicted probabilities. Of the chosen experts that are not resident only the best stays;
    the others give way to the best residents not chosen. Weights are scores, divided by their sum."""
    if layer < FIRST_PREDICTED:
        return None
    ranking = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))
    chosen = ranking[:top_k]
    others = [expert for expert in ranking[top_k:] if expert in resident]
    for expert in [expert for expert in chosen if expert not in resident][1:]:
        if others:
            chosen[chosen.index(expert)] = others.pop(0)
    total = sum(scores[expert] for expert in chosen)
    return [(expert, scores[expert] / total) for expert in chosen]


def reroute(routed: Routed) -> Rerouted | None:
    """Lossy: every token's predicted routing, its weights scaled to the sum of the real ones."""
    if routed.predicted is None or routed.layer < FIRST_PREDICTED:
        return None
    tokens, top_k = routed.ids.shape
    rows = [predicted_routing(routed.layer, row, top_k, routed.resident) for row in routed.predicted.tolist()]
    pairs = np.array(rows).reshape(tokens, top_k, 2)
    weights = pairs[..., 1] * routed.weights.sum(axis=1, keepdims=True)
    return Rerouted(pairs[..., 0].astype(np.int64), weights, np.full(routed.ids.shape, KEPT))


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    prompt = Prompt()
    cache = Cache(layers, experts, capacity, seed, prompt)
    return Policies(Assign(), create("prefetch", "none"), cache, prompt.begin)


SYSTEM = System(
    name="daop",
    title="DAOP",
    create=policies,
    source="DAOP, arXiv 2501.10375; github.com/ecolab-nus/DAOP",
    differs=(
        "Its swaps block a prompt's layer before it is computed; here they follow the layer. The initial set is popular over a "
        "profile text there, random here. Routing stays real, so that the CPU has nothing to start early; with the lossy parts "
        "on it starts no earlier, so they show their cost in quality, not their gain in time."
    ),
    lossy=("predicted routing", "residents in place of CPU experts"),
    parts=LossyParts(reroute=reroute, predicts=True),
)
