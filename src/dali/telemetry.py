"""Counters of what the runtime did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class LayerCounters:
    """Totals of one MoE layer. A lookup is one active expert in one step; seconds are on the device's clock."""

    steps: int = 0
    routed_tokens: int = 0  # (token, choice) pairs
    resident: int = 0  # lookups: computed on the accelerator, was there
    prefetched: int = 0  # computed on the accelerator, fetched ahead
    fetched: int = 0  # computed on the accelerator, fetched on demand
    cpu: int = 0  # computed on the CPU
    expert_bytes: int = 0  # packed weights read to compute
    link_bytes: int = 0  # packed weights copied to the accelerator
    prefetch_used: int = 0
    prefetch_late: int = 0  # wanted, but not there in time to be worth waiting for
    prefetch_wasted: int = 0  # not wanted
    swaps: int = 0
    seconds: float = 0.0  # makespan: routing known -> outputs summed
    accelerator_seconds: float = 0.0
    cpu_seconds: float = 0.0
    link_seconds: float = 0.0

    @property
    def lookups(self) -> int:
        return self.resident + self.prefetched + self.fetched + self.cpu

    @property
    def hit_rate(self) -> float:
        """Share of lookups that found their expert on the accelerator, or on its way there."""
        return (self.resident + self.prefetched) / self.lookups if self.lookups else 0.0

    @property
    def overlap(self) -> float:
        """Lanes busy at once, on average over the makespan: 1 = one after another, 3 = all together."""
        busy = self.accelerator_seconds + self.cpu_seconds + self.link_seconds
        return busy / self.seconds if self.seconds else 0.0


@dataclass
class Telemetry:
    """Counters a layer since the model was loaded. `modelled`: seconds came from a virtual clock, not from a watch; `workload`
    [layers, experts]: tokens that each expert got, to which compiled code adds."""

    layers: list[LayerCounters] = field(default_factory=list)
    modelled: bool = False
    predict_seconds: float = 0.0  # host time spent on running later routers, measured
    plan_seconds: float = 0.0  # host time spent in the assignment policy or the compiled planner, measured
    draft_accepted: int = 0  # tokens that were guessed and then chosen
    draft_rejected: int = 0  # and those that were computed for nothing
    workload: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64), compare=False)

    def layer(self, index: int) -> LayerCounters:
        while len(self.layers) <= index:
            self.layers.append(LayerCounters())
        return self.layers[index]

    def count_experts(self, layers: int, experts: int) -> NDArray[np.int64]:
        """The workload, which from here on has that many rows and columns, and stays where it is."""
        if self.workload.shape != (layers, experts):
            self.workload = np.zeros((layers, experts), np.int64)
        return self.workload

    def clear(self) -> None:
        """Begin anew."""
        self.layers.clear()
        self.draft_accepted = self.draft_rejected = 0
        self.workload[:] = 0

    def total(self) -> LayerCounters:
        """All layers added up."""
        return LayerCounters(
            **{
                name: sum(getattr(layer, name) for layer in self.layers)
                for name in LayerCounters.__dataclass_fields__
            }
        )

    @property
    def expert_bytes(self) -> int:
        """Packed weights read to compute, all layers."""
        return sum(layer.expert_bytes for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """For `llm.stats()`: totals, rates and the same a layer, and the workload."""
        return {
            "modelled": self.modelled,
            "predict_seconds": self.predict_seconds,
            "plan_seconds": self.plan_seconds,
            "draft_accepted": self.draft_accepted,
            "draft_rejected": self.draft_rejected,
            "total": _as_dict(self.total()),
            "layers": [_as_dict(layer) for layer in self.layers],
            "workload": self.workload.tolist(),
        }


def _as_dict(counters: LayerCounters) -> dict[str, Any]:
    return asdict(counters) | {"hit_rate": counters.hit_rate, "overlap": counters.overlap}
