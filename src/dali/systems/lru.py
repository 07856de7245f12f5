"""Dali's assignment over the textbook cache: the least recently used resident makes room."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "two_lane"),
        create("prefetch", "none"),
        create("cache", "lru", layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(name="lru", title="Two lanes + LRU", create=policies, source="baseline of this project")
