"""DALI as published: greedy assignment, residual prefetching of a fixed number, workload-aware replacement."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System

MANY = 64  # experts a layer, from which on the paper's constants are those of DeepSeek-V2-Lite and Qwen3


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    many = experts >= MANY
    return Policies(
        create("assign", "greedy"),
        create("prefetch", "residual", count=4 if many else 1),
        create(
            "cache",
            "workload",
            layers=layers,
            experts=experts,
            capacity=capacity,
            seed=seed,
            window=4,
            swaps=8 if many else 1,
        ),
    )


SYSTEM = System(
    name="dali-paper",
    title="DALI",
    create=policies,
    source="DALI, arXiv 2602.03495",
    differs=(
        "The errors that dali.policies.assign.greedy and dali.policies.cache.workload name are mended. Prefetched experts wait "
        "in scratch slots and evict nothing."
    ),
    signals=frozenset({"gate_inputs"}),
)
