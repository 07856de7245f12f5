"""Nothing on the accelerator, nothing copied: what every offloading system has to beat."""

from __future__ import annotations

from dali.policies import Policies, create
from dali.systems import System


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    return Policies(
        create("assign", "cpu"),
        create("prefetch", "none"),
        create("cache", "none", layers=layers, experts=experts, seed=seed),
    )


SYSTEM = System(
    name="all-cpu",
    title="All experts on the CPU",
    create=policies,
    source="llama.cpp's --cpu-moe, https://github.com/ggml-org/llama.cpp",
)
