"""Least recently used: the expert whose last use is the longest ago makes room, in whatever layer."""

from __future__ import annotations

from collections.abc import Sequence

from dali.policies.pool import PoolPolicy


class Policy(PoolPolicy):
    """`lru`."""

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._events = 0
        self._last = [[0.0] * experts for _ in range(layers)]

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        self._events += 1
        last = self._last[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                last[expert] = self._events
        return last
