"""FreeToken: a step's misses are split between link and CPU by their bandwidths; one LRU cache over all layers; prompts stream
whole layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

import numpy as np

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies
from dali.policies.assign.gpu import all_gpu
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import PrefetchPolicy
from dali.policies.signals import Signals
from dali.systems import System
from dali.systems._pool import PooledCache
from dali.systems._prompt import Prompt


class Cache(PooledCache):
    """A fetched expert replaces the one of any layer whose last use is the longest ago. Prompts leave it alone."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int, prompt: Prompt) -> None:
        super().__init__(layers, experts, capacity, seed)
        self.last_use = np.zeros((layers, experts))  # by count of layers computed so far
        self._now = 0
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
        if self._prompt.here:
            return []
        swaps = self.stay(layer, self.last_use, workload, resident, fetched, protected)
        self._now += 1
        self.last_use[layer, np.asarray(workload) > 0] = self._now
        return swaps


class Assign:
    """Residents on the accelerator; of the misses a share goes over the link and the CPU computes the others, so that both take
    as long. Fetched are those used last before this step, ties to the lower id. A prompt's layers are copied whole."""

    def __init__(self, cache: Cache, prompt: Prompt) -> None:
        self._cache = cache
        self._prompt = prompt

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        if self._prompt.here:
            return all_gpu(workload, view, costs)
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        here = [expert for expert in active if expert in view.resident]
        here += [expert for expert in view.landing() if workload[expert]]
        last_use = self._cache.last_use[layer]
        misses = sorted(set(active) - set(here), key=lambda expert: (-last_use[expert], expert))
        fetch = misses[: split(len(misses), costs)] if view.slots else []
        return LayerPlan(tuple(sorted(set(misses) - set(fetch))), (*here, *fetch), tuple(fetch))


def split(misses: int, costs: ExpertCosts) -> int:
    """How many of `misses` experts to copy: of the two whole numbers around link / (link + CPU) x misses, in bandwidths
    measured together, the one whose slower side is done first; ties to the lower."""
    copy, compute = costs.link_contended, costs.cpu[1]
    low = int(misses * compute / (copy + compute))
    return min((low, low + 1), key=lambda count: max(count * copy, (misses - count) * compute))


class Prefetch(PrefetchPolicy):
    """While a prompt is computed, the next layer is copied whole, as far as slots and the idle link go."""

    def __init__(self, layers: int, experts: int, prompt: Prompt) -> None:
        super().__init__()
        self._layers = layers
        self._every = [1] * experts
        self._prompt = prompt

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        return [(layer + 1, self._every)] if self._prompt.here and layer + 1 < self._layers else []


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    prompt = Prompt()
    cache = Cache(layers, experts, capacity, seed, prompt)
    return Policies(Assign(cache, prompt), Prefetch(layers, experts, prompt), cache, prompt.begin)


SYSTEM = System(
    name="freetoken",
    title="FreeToken",
    create=policies,
    source="FreeToken, arXiv 2608.16157; github.com/FlashML-org/FreeToken",
    differs=(
        "The split's rounding and which misses to fetch, those used last, are the code's. A prompt's layers pass through scratch "
        "slots, where the code has two buffers of a whole layer."
    ),
)
