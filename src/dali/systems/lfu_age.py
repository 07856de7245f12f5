"""Dali's assignment over least frequently used with ageing: an expert's count fades with the steps since its last use."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

from dali.policies import Policies, create
from dali.policies.cache import CachePolicy, Swap, fill
from dali.policies.signals import Signals
from dali.systems import System

AGEING = 0.98  # a step


class Cache(CachePolicy):
    """A fetched expert stays in place of the resident of least count x 0.98^age; `age`: steps since its last use."""

    def __init__(self, layers: int, experts: int, capacity: int, seed: int = 0) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._steps = [0] * layers
        self._uses = [[0] * experts for _ in range(layers)]
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
        now, uses, last_use = self._steps[layer], self._uses[layer], self._last_use[layer]
        for expert, tokens in enumerate(workload):
            if tokens:
                uses[expert] += 1
                last_use[expert] = now
        ranks = [count * AGEING ** (now - last) for count, last in zip(uses, last_use, strict=True)]
        return fill(ranks, workload, resident, fetched, protected)


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "two_lane"),
        create("prefetch", "none"),
        Cache(layers, experts, capacity, seed),
    )


SYSTEM = System(
    name="lfu-age", title="Two lanes + ageing LFU", create=policies, source="baseline of this project"
)
