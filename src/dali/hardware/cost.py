"""The cost model: seconds of every part of a step for one expert shape on one hardware profile.

Where the profile holds measured tables, experts' times come from them: from a table of the very shape, else by the bytes and
the operations of the shapes that were measured (`rates.py`). Elsewhere roofline formulas (bytes = one packed expert, w tokens,
flops = 2 x hidden x intermediate x matrices a token; bandwidths and rates are the profile's effective figures):

    t_cpu(w)       = max(bytes / cpu_bandwidth, w x flops / cpu_rate)
    t_gpu(w)       = max(bytes / gpu_bandwidth, w x flops / gpu_rate)
    link           = link_latency + bytes / link_bandwidth
    link contended = the same with min(link_bandwidth, memory_bandwidth - cpu_bandwidth): what DRAM has left
                     for the copy while the CPU's experts run at full pace
    launch         = 2 x the profile's launch: an expert is two kernels (gate and up with activation; down)
    read           = disk_latency + bytes / disk_bandwidth + bytes / check_bandwidth, bytes in whole pages; reads under way at
                     once hide the latency of those behind them, and land together (`disk_lane.py`)

The CPU's experts are one call, which takes some time by itself (experts_call, where it was measured): the first one that it
computes costs more than another.

Without an accelerator the CPU computes the dense part as well, at its experts' bandwidth and rate, and nothing is launched or
handed over. A profile may be of a machine that has none; what would be its times are then endless.

Every time from here is modelled; print it with that word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from dali.errors import DaliError, UsageError
from dali.hardware import rates
from dali.hardware.profile import DISK, Profile, known, load

KERNELS_AN_EXPERT = 2
NEVER = 1e9  # seconds of what cannot be; endless, but for sums and quotients of it


@dataclass(frozen=True, slots=True)
class ExpertSize:
    """Sizes of one routed expert: `matrices` of hidden x intermediate weights, `bytes` packed by format."""

    hidden: int
    intermediate: int
    matrices: int
    bytes: Mapping[str, int]

    @property
    def flops(self) -> int:
        """Floating-point operations of one token in one expert."""
        return 2 * self.hidden * self.intermediate * self.matrices


@dataclass(frozen=True, slots=True)
class ExpertCosts:
    """What the policies see: plain numbers in seconds. The lists are indexed by workload, from 0 (which costs
    nothing) to the largest one foreseen."""

    cpu: list[float]
    gpu: list[float]  # compute only, the expert already there, without the launch
    link: float  # copying one expert while the CPU is idle
    link_contended: float  # copying one expert while the CPU computes; never below `link`
    launch: float  # launching one expert, or one group of experts
    handover: float = (
        0.0  # activations down, outputs up, and `call`: once a layer in which the CPU computes at all
    )
    call: float = 0.0  # of its experts, beside what they take


@dataclass(frozen=True, slots=True)
class DiskCosts:
    """The disk lane's figures: bytes a second, seconds until a read's first byte, reads under way at once, and seconds of
    checking a byte that has been read."""

    bandwidth: float
    latency: float
    depth: int
    check: float = 0.0

    def each(self, nbytes: int) -> float:
        """Seconds that a read of so many bytes takes of the disk and of whoever checks it, behind another."""
        return nbytes / self.bandwidth + nbytes * self.check

    def read(self, nbytes: int) -> float:
        """Seconds of a read of so many bytes on an idle disk."""
        return self.latency + self.each(nbytes)


def disk_costs(profile: Profile) -> DiskCosts:
    """By whichever way of reading experts it has faster. UsageError: the profile has no disk."""
    if not profile.has_disk:
        others = [name for name in known() if load(name).has_disk]
        raise UsageError(
            f"The hardware profile {profile.name} does not say how fast its disk is.",
            f"Add {', '.join(DISK)} to its figures, or use one of {', '.join(others)}.",
        )
    way = "plain" if profile.reads_plainly else "disk"
    depth = max(int(profile[f"{way}_queue_depth"]), 1)
    check = 1 / profile["check_bandwidth"] if "check_bandwidth" in profile.figures else 0.0
    return DiskCosts(profile[f"{way}_bandwidth"], profile["disk_latency"], depth, check)


class CostModel:
    """Times of one expert shape, in one packed format, for workloads up to `max_tokens`, on one profile, with or without its
    accelerator.

    UsageError: the shape has no size for the format. DaliError: the profile leaves the link no DRAM
    bandwidth.
    """

    def __init__(
        self, profile: Profile, shape: ExpertSize, format: str, max_tokens: int, accelerator: bool = True
    ) -> None:
        if format not in shape.bytes:
            raise UsageError(
                f"The experts have no size in the format {format!r}.", f"Use one of {', '.join(shape.bytes)}."
            )
        self.profile = profile
        self.shape = shape
        self.format = format
        self.label = profile.label
        if accelerator and not profile.has_accelerator:
            raise UsageError(
                f"The hardware profile {profile.name} is of a machine without an accelerator.",
                f"Use one of {', '.join(known())}, or measure a machine that has one: `dali bench hw`.",
            )
        there = profile.has_accelerator
        self._contended = _contended_bandwidth(profile) if there else 0.0
        size = shape.bytes[format]
        call = profile["experts_call"] if "experts_call" in profile.figures else 0.0
        self.costs = ExpertCosts(
            cpu=self._table("cpu", max_tokens),
            gpu=self._table("gpu", max_tokens) if there else [0.0] + [NEVER] * max_tokens,
            link=self.copy(size) if there else NEVER,
            link_contended=self.copy(size, contended=True) if there else NEVER,
            launch=KERNELS_AN_EXPERT * profile["launch"] if accelerator else 0.0,
            handover=call + (2 * self.activation_copy(1) if accelerator else 0.0),
            call=call,
        )
        self.sync = profile["sync"] if accelerator else 0.0
        self._dense_on = "gpu" if accelerator else "cpu"

    def copy(self, size: int, contended: bool = False) -> float:
        """Seconds of one copy of `size` bytes over the link, alone or while the CPU computes experts."""
        bandwidth = self._contended if contended else self.profile["link_bandwidth"]
        return self.profile["link_latency"] + size / bandwidth

    def activation_copy(self, tokens: int) -> float:
        """Seconds to bring one float32 row a token over the link."""
        return self.copy(4 * self.shape.hidden * tokens)

    def dense(self, weight_bytes: int, parameters: int, tokens: int, kernels: int) -> float:
        """Seconds of a layer's dense part (attention, norms, router) on the accelerator, or on the CPU where there is none:
        weights streamed once."""
        where = self._dense_on
        work = max(
            weight_bytes / self.profile[f"{where}_bandwidth"],
            2 * parameters * tokens / self.profile[f"{where}_rate"],
        )
        return work + (kernels * self.profile["launch"] if where == "gpu" else 0.0)

    def dense_seconds(self, weight_bytes: int, parameters: int, kernels: int) -> Callable[[int], float]:
        """tokens -> seconds of a layer's dense part of that size, the host's wait for its routing included; live runs and replays
        charge the same."""
        return cache(lambda tokens: self.dense(weight_bytes, parameters, tokens, kernels) + self.sync)

    def _table(self, device: str, max_tokens: int) -> list[float]:
        shape = self.shape
        wanted = (shape.hidden, shape.intermediate, shape.matrices)
        tables = rates.alone(self.profile.tables, device, "experts")
        for table in tables:
            if table.format == self.format and (table.hidden, table.intermediate, table.matrices) == wanted:
                return interpolate(table.points, max_tokens)
        parameters = shape.hidden * shape.intermediate * shape.matrices
        points = rates.points(tables, self.format, parameters, shape.bytes[self.format])
        if points is not None:
            return interpolate(points, max_tokens)
        stream = self.shape.bytes[self.format] / self.profile[f"{device}_bandwidth"]
        token = self.shape.flops / self.profile[f"{device}_rate"]
        return [0.0] + [max(stream, w * token) for w in range(1, max_tokens + 1)]


def interpolate(points: Sequence[tuple[int, float]], max_tokens: int) -> list[float]:
    """Seconds for 0 .. max_tokens from measured (tokens, seconds): straight lines between the points, 0 for
    no token; past the last point its time grows by the last line's slope, with one point in proportion."""
    seconds = [0.0]
    for (low, start), (high, end) in pairwise(points):
        seconds += [start + (end - start) * (w - low) / (high - low) for w in range(low, high)]
    last, time = points[-1]
    slope = max(0.0, (time - points[-2][1]) / (last - points[-2][0])) if len(points) > 1 else time / last
    seconds += [time + slope * (w - last) for w in range(last, max_tokens + 1)]
    return seconds[: max_tokens + 1]


def _contended_bandwidth(profile: Profile) -> float:
    link = profile["link_bandwidth"]
    if "link_contended" in profile.figures:
        return min(link, profile["link_contended"])
    left = profile["memory_bandwidth"] - profile["cpu_bandwidth"]
    if left <= 0:
        raise DaliError(
            f"The hardware profile {profile.name} lets the CPU's experts take all of the memory bandwidth, "
            f"{profile['memory_bandwidth']:.3g} B/s, which leaves nothing for copies.",
            "Give the profile a figure link_contended, measured while the CPU computes.",
        )
    return min(link, left)
