"""What `dali run` does unless told otherwise."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.policies.registry import DEFAULT
from dali.systems import System


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", DEFAULT["assign"]),
        create("prefetch", DEFAULT["prefetch"]),
        create("cache", DEFAULT["cache"], layers=layers, experts=experts, capacity=capacity, seed=seed),
    )


SYSTEM = System(
    name="default",
    title="dali's default",
    create=policies,
    source="this project; its parts are described in dali.policies",
    signals=frozenset({"gate_inputs"}),
    guarded=True,
)
