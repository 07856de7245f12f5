"""Least frequently used: the expert used in the fewest forward steps so far makes room, in whatever layer."""

from __future__ import annotations

from collections.abc import Sequence

from dali.policies.pool import PoolPolicy


class Policy(PoolPolicy):
    """`lfu`."""

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._uses = [[0.0] * experts for _ in range(layers)]

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        uses = self._uses[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                uses[expert] += 1
        return uses
