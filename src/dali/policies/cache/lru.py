"""Least recently used: a fetched expert stays in place of the resident whose last use is the longest ago. All
uses of one forward step are equally recent."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

from dali.policies.cache import CachePolicy, Swap, fill
from dali.policies.signals import Signals


class Policy(CachePolicy):
    """`lru`."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._steps = [0] * layers
        self._last_use = [[0] * experts for _ in range(layers)]

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        self._steps[layer] += 1
        last_use = self._last_use[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                last_use[expert] = self._steps[layer]
        return fill(last_use, workload, resident, fetched, protected)
