"""A profile for a machine that nobody measured: one quick reading of its memory, and published figures for all else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dali.hardware import profile as profiles
from dali.hardware.profile import Profile

BASE = "rtx3060-desktop"  # the published profile whose CPU and disk stand in
BASE_CORES = 6
EACH, ROUNDS = 32 * 2**20, 3  # bytes that a thread reads, and how often
LEAST = 1e-4  # seconds, below which clocks say nothing
KEPT = ("memory_bandwidth", "cpu_bandwidth", "cpu_rate", "disk_bandwidth", "disk_latency", "disk_queue_depth")


def quick_profile(cores: int) -> Profile:
    """Of this machine's CPU, without an accelerator: in some hundredths of a second, and rough."""
    base = profiles.load(BASE)
    measured, share = _bandwidth(min(cores, 8)), cores / BASE_CORES
    figures = {name: base.figures[name] for name in KEPT}
    kernels = base["cpu_bandwidth"] / base["memory_bandwidth"]
    source = "a quick reading of memory by `dali doctor`"
    for name, value in (("memory_bandwidth", measured), ("cpu_bandwidth", kernels * measured)):
        figures[name] = replace(
            figures[name], value=value, source=source, efficiency=1.0, efficiency_source=""
        )
    figures["cpu_rate"] = replace(figures["cpu_rate"], value=base.figures["cpu_rate"].value * share)
    return replace(
        base, name="quick", description="a quick look at this machine", figures=figures, tables=(), curves=()
    )


def _bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read together. By the processor's time, so that other programs' turns do not count;
    the best of a few rounds of each."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(_best, [np.ones(EACH // 8) for _ in range(threads)]))


def _best(data: NDArray[np.float64]) -> float:
    rates = []
    for _ in range(ROUNDS):
        begin = time.thread_time()
        data.sum()
        rates.append(data.nbytes / max(time.thread_time() - begin, LEAST))
    return max(rates)
