"""Every expert on the accelerator, absent ones fetched when they are demanded, the least recently used making room."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "gpu"),
        create("prefetch", "none"),
        create("cache", "lru", layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(
    name="gpu-only",
    title="On-demand loading",
    create=policies,
    source="baseline of this project",
)
