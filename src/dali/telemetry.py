"""Counters of what the runtime did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from operator import sub
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


@dataclass(frozen=True)
class DiskCounters:
    """Totals of experts that RAM holds a part of. A lookup is as above, of an expert that is not on the accelerator; seconds are
    of whoever waited, measured or, on a virtual clock, modelled."""

    hits: tuple[int, ...]  # lookups of each layer: in RAM when its router had spoken
    misses: tuple[int, ...]  # not
    reads: int  # of an expert each, those ahead of a step included
    read_bytes: int
    wanted_bytes: int  # of those, what a step asked for
    ahead_used: int  # read ahead of their step: there in time
    ahead_late: int  # still under way
    ahead_wasted: int  # not asked for
    stalled_seconds: float  # nothing was left to compute
    reading_seconds: float  # of all reads, added up
    busy_seconds: float  # in which any read was under way
    plain_reads: int  # of the reads, through the page cache
    plainly: bool  # whether they go there now

    @property
    def hit_rate(self) -> float:
        """Share of lookups whose expert was in RAM."""
        lookups = sum(self.hits) + sum(self.misses)
        return sum(self.hits) / lookups if lookups else 0.0

    @property
    def amplification(self) -> float:
        """Bytes read for each one that a step asked for: 1 where nothing was read in vain."""
        return self.read_bytes / self.wanted_bytes if self.wanted_bytes else 0.0

    @property
    def queue_depth(self) -> float:
        """Reads under way, on average while there were any."""
        return self.reading_seconds / self.busy_seconds if self.busy_seconds else 0.0

    def since(self, before: DiskCounters) -> DiskCounters:
        """What was counted after `before`, and how it is now."""

        def less(now: Any, then: Any) -> Any:
            if isinstance(now, bool):
                return now
            return tuple(map(sub, now, then)) if isinstance(now, tuple) else now - then

        return DiskCounters(**{name: less(getattr(self, name), then) for name, then in vars(before).items()})

    def as_dict(self) -> dict[str, Any]:
        """For `llm.stats()`: totals of all layers, and rates."""
        return asdict(self) | {
            "hits": sum(self.hits),
            "misses": sum(self.misses),
            "hit_rate": self.hit_rate,
            "amplification": self.amplification,
            "queue_depth": self.queue_depth,
        }


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
    worth: dict[str, Any] | None = (
        None  # of an accelerator, as modelled when the model was loaded (offload/worth.py)
    )
    steps_on_cpu: int = 0  # decoding steps whose experts were all the CPU's, as that was faster or was tried
    reverts: int = 0  # how often that was found to be faster
    reverted: bool = False  # whether it is now
    workload: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64), compare=False)
    _disk: Callable[[], DiskCounters] | None = None
    _disk_before: DiskCounters | None = None

    def follow_disk(self, counters: Callable[[], DiskCounters]) -> None:
        """Of a pool on disk: `counters` says what it has counted."""
        self._disk, self._disk_before = counters, counters()

    @property
    def disk(self) -> DiskCounters | None:
        """What was asked of the disk, where experts are on one."""
        if self._disk is None or self._disk_before is None:
            return None
        return self._disk().since(self._disk_before)

    @property
    def tiers(self) -> dict[str, int]:
        """Lookups by the tier that their expert was found on: "accelerator", "ram" or "disk"."""
        total, disk = self.total(), self.disk
        there = total.resident + total.prefetched
        read = 0 if disk is None else sum(disk.misses)
        return {"accelerator": there, "ram": total.lookups - there - read, "disk": read}

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
        self.steps_on_cpu = self.reverts = 0
        self.workload[:] = 0
        if self._disk is not None:
            self._disk_before = self._disk()

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
            "worth": self.worth,
            "steps_on_cpu": self.steps_on_cpu,
            "reverts": self.reverts,
            "reverted": self.reverted,
            "total": _as_dict(self.total()),
            "layers": [_as_dict(layer) for layer in self.layers],
            "tiers": self.tiers,
            "disk": None if (disk := self.disk) is None else disk.as_dict(),
            "workload": self.workload.tolist(),
        }


def _as_dict(counters: LayerCounters) -> dict[str, Any]:
    return asdict(counters) | {"hit_rate": counters.hit_rate, "overlap": counters.overlap}
