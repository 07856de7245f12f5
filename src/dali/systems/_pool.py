"""A cache that is one pool over all layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from dali.policies.cache import CachePolicy, Swap

Ranks = NDArray[np.float64]  # [layers, experts]


class PooledCache(CachePolicy):
    """Fetched experts that were used stay, in the slots of the lowest-ranked residents of any layer."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._held = np.zeros((layers, experts), dtype=bool)
        for layer in range(layers):
            self._held[layer, list(self.initial(layer))] = True

    def stay(
        self,
        layer: int,
        ranks: Ranks,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int],
        protected: Set[int],
        order: Iterable[int] | None = None,
    ) -> list[Swap]:
        """Swaps for the fetched experts, in `order` (by id unless given). Those used in this step are no victims; ties go to the
        lower layer, then to the lower id."""
        held = self._held
        held[layer] = False
        held[layer, list(resident)] = True
        loads = [
            expert
            for expert in (sorted(fetched) if order is None else order)
            if workload[expert] and expert not in protected
        ]
        if not loads:
            return []
        left = np.where(held, ranks, np.inf)
        left[layer, np.asarray(workload) > 0] = np.inf
        left[layer, list(protected)] = np.inf
        swaps = []
        for load in loads:
            donor, evict = divmod(int(left.argmin()), self.experts)
            if left[donor, evict] == np.inf:
                break
            left[donor, evict] = np.inf
            held[donor, evict] = False
            held[layer, load] = True
            swaps.append(Swap(evict, load, None if donor == layer else donor))
        return swaps
