"""A layer's seconds over a GPU, by a hardware profile and by what was asked of it; see benchmarks/policies/gpu_modelled.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dali.fused.dense import PackedLinear
from dali.hardware.cost import CostModel
from qwen3_layers import TOP_K

LAUNCH_US = 1.2  # cuLaunchKernel; an assumption, to be measured
LIMIT_US = 30  # of the host's work
Plan = tuple[
    int, int, int, int
]  # experts on the CPU, on the GPU where they lay, there after a copy; copies for later


@dataclass(frozen=True)
class LayerSeconds:
    """Of one layer, on average."""

    floor: float
    now: float
    dense: float
    experts: float
    copies: float


def dense_bytes(model: Any) -> int:
    """Bytes that a token reads of the dense part, as the GPU has it: packed linears, and all else but the embeddings."""
    embeddings = model.get_input_embeddings()
    linears = sum(module.packed.nbytes for module in model.modules() if isinstance(module, PackedLinear))
    return int(linears + sum(p.nbytes for p in model.parameters() if p is not embeddings.weight))


def layer_seconds(
    costs: CostModel,
    plans: Sequence[Plan],
    hits: float,
    dense_bytes: float,
    issue: float,
    host: float,
    driver: float,
) -> LayerSeconds:
    """`hits`: experts that a step found on the GPU; `dense_bytes`: the layer's; seconds: `issue`, of the dense part where it
    takes longer than its bytes; `host`, of the host's work; `driver`, of the driver's calls that are not in it."""
    profile, size = costs.profile, costs.costs
    expert, ram = costs.shape.bytes[costs.format], profile["memory_bandwidth"]
    lanes, link, memory = [], [], []
    for on_cpu, there, fetched, ahead in plans:
        on_gpu = (there + fetched) * size.gpu[1]
        copied = fetched * size.link + (size.gpu[1] if fetched else 0.0)
        lanes.append(max(on_cpu * size.cpu[1], on_gpu, copied, (on_cpu + fetched) * expert / ram))
        link.append((fetched + ahead) * size.link)
        memory.append((on_cpu + fetched + ahead) * expert / ram)
    work, least = statistics.fmean(lanes), max(map(statistics.fmean, (link, memory)))
    dense = dense_bytes / profile["gpu_bandwidth"]
    floor = dense + max((TOP_K - hits) * expert / ram, hits * expert / profile["gpu_bandwidth"])
    now = max(dense, issue) + costs.sync + host + driver + work
    copies = statistics.fmean(link)
    return LayerSeconds(floor, max(now, least), dense, work, copies)
