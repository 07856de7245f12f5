"""Least frequently used: a fetched expert stays in place of the resident used in the fewest forward steps so
far; counts outlive an expert's stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

from dali.policies.cache import CachePolicy, Swap, fill
from dali.policies.signals import Signals


class Policy(CachePolicy):
    """`lfu`."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._uses = [[0] * experts for _ in range(layers)]

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        uses = self._uses[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                uses[expert] += 1
        return fill(uses, workload, resident, fetched, protected)
