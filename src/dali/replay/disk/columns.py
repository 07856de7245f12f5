"""What a replay with experts on disk says in its row, and the bounds that hold for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from dali.hardware.cost import CostModel, DiskCosts
from dali.replay.bounds import pooled_hits
from dali.replay.disk.tier import Reads
from dali.replay.steps import Forward
from dali.replay.timeline import Result
from dali.replay.traces.trace import Trace


def found(result: Result, reads: Reads, expert_bytes: int, read_bytes: int) -> dict[str, float | None]:
    """Rates and shares. Of all active experts: `hit_rate`, found without a read; `accelerator_hit_rate`, resident there, None
    without one. Of those that have to be in RAM: `ram_hit_rate`, there since an earlier use; `ahead_rate`, read ahead in time."""
    lookups, accelerated = int(result.lookups.sum()), int(result.hits.sum())
    in_ram = max(reads.hits + reads.useful, 1)
    return {
        "hit_rate": 1 - reads.useful / max(lookups, 1),
        "accelerator_hit_rate": accelerated / max(lookups, 1) if result.copies or accelerated else None,
        "ram_hit_rate": reads.hits / in_ram,
        "ahead_rate": reads.ahead / in_ram,
        "bytes_read": float(reads.reads * read_bytes),
        "bytes_read_per_token": reads.generated_reads * read_bytes / max(result.tokens, 1),
        "read_amplification": reads.reads * read_bytes / max(reads.useful * expert_bytes, 1),
        "stall_share": reads.stalled / result.seconds if result.seconds else 0.0,
    }


def belady(trace: Trace, steps: Sequence[Forward], places: int, cold: bool) -> float:
    """The most active experts that any pool of so many places finds without a read, `cold`: that is empty at first."""
    hits, lookups = pooled_hits(trace, steps, places, cold)
    return hits / lookups


def least_read_seconds(
    trace: Trace, steps: Sequence[Forward], places: int, read_bytes: int, disk: DiskCosts, cold: bool
) -> float:
    """What the disk takes at least for the steps of generated tokens, whatever is read during prompts: the bytes missed by the
    offline optimum at the full bandwidth. `cold`: nothing is in RAM at first."""
    missed = 0
    for prefill, run in groupby(steps, key=lambda step: step.prefill):
        if not prefill:
            hits, lookups = pooled_hits(trace, list(run), places, cold)
            missed += lookups - hits
        cold = False
    return missed * read_bytes / disk.bandwidth


def cpu_seconds(
    trace: Trace, steps: Sequence[Forward], model: CostModel, dense: Callable[[int], float]
) -> float:
    """What the steps of generated tokens take where the CPU computes everything and all experts are in RAM."""
    seconds, base = 0.0, np.arange(trace.layers)[:, None] * trace.experts
    cpu = np.array(model.costs.cpu)
    for step in steps:
        if not step.prefill:
            flat = trace.ids[step.rows].astype(np.int64) + base
            workload = np.bincount(flat.ravel(), minlength=trace.layers * trace.experts)
            seconds += float(cpu[workload].sum()) + trace.layers * (dense(len(step.rows)) + model.costs.call)
    return seconds
