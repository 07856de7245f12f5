"""mixtral-offloading: experts on the accelerator only, an LRU cache a layer, speculative loading of the next layer's experts."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System

SPECULATIVE = 2  # experts; the paper loads 1 or 2


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "gpu"),
        create("prefetch", "next_gate", count=SPECULATIVE),
        create("cache", "lru", layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(
    name="mixtral-offloading",
    title="mixtral-offloading",
    create=policies,
    source="Eliseev, Mazur, arXiv 2312.17238; github.com/dvmazur/mixtral-offloading",
    differs=(
        "The released code has the cache but not the speculative loading; this follows the paper. A step's experts never evict "
        "each other. Its experts of 2 and 3 bits are a storage format and no decision; here they keep the model's."
    ),
    lossy=("2-3 bit experts",),
    signals=frozenset({"gate_inputs"}),
)
