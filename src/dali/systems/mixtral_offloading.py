"""mixtral-offloading: experts on the accelerator only, an LRU cache a layer, speculative loading of the next layer's experts."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System
from dali.systems._lossy import LossyParts

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
        "each other. Its experts of 2 bits (the code's; 3 are the paper's other choice) come from HQQ, with groups of 16. Here "
        "they keep the model's format; with the lossy part on they are rounded to nearest, in groups of 32 with a whole zero "
        "point, and take the model's bytes."
    ),
    lossy=("2-3 bit experts",),
    parts=LossyParts(bits=2),
    variants={"3-bit": policies},
    variant_parts={"3-bit": LossyParts(bits=3)},
    signals=frozenset({"gate_inputs"}),
)
