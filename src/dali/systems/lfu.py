"""Dali's assignment over the textbook cache: the resident used in the fewest steps makes room."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "two_lane"),
        create("prefetch", "none"),
        create("cache", "lfu", layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(name="lfu", title="Two lanes + LFU", create=policies, source="baseline of this project")
