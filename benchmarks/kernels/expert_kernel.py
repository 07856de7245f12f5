"""The compiled expert kernel alone, on cold weights: hidden 2048, intermediate 1024, SwiGLU.

Experts lie in a pool of 1 GiB that the calls walk through, so no cache helps. `GB/s`: packed bytes over the call's median
time; `%`: of the read bandwidth of the same threads, measured between the calls on the same memory. `1..8`: experts with 1,
2, ... 8 tokens in turn.

    python benchmarks/kernels/expert_kernel.py [--seconds S] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.store.arena import Arena

HIDDEN, INTERMEDIATE = 2048, 1024
POOL = 2**30
READ = 128 * 2**20  # bytes read to measure bandwidth
SHAPES: dict[str, tuple[int, list[int]]] = {  # name -> experts, and their tokens in turn
    "1 x 1": (1, [1]),
    "8 x 1": (8, [1]),
    "64 x 1..8": (64, list(range(1, 9))),
    "1 x 16": (1, [16]),
    "1 x 64": (1, [64]),
    "8 x 64": (8, [64]),
}
FEW = ["8 x 1", "1 x 64"]


def fill(layout: ExpertLayout) -> Arena:
    """A pool of one random expert, over and over."""
    torch.manual_seed(0)
    parts = {
        name: torch.randn(rows, columns) / columns**0.5
        for name, (rows, columns) in layout.shape.matrices.items()
    }
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    layout.pack(ExpertWeights(**parts), record)
    arena = Arena(POOL // layout.record_bytes, layout.record_bytes)
    for index in range(len(arena)):
        arena[index].copy_(record)
    return arena


def measure(
    layout: ExpertLayout, arena: Arena, experts: int, tokens: list[int], seconds: float
) -> dict[str, Any]:
    offsets = [0]
    for expert in range(experts):
        offsets.append(offsets[-1] + tokens[expert % len(tokens)])
    pairs = offsets[-1]
    hidden, rows, slots = torch.randn(pairs, HIDDEN), torch.empty(pairs, HIDDEN), torch.arange(pairs)
    everything = arena[0].as_strided((arena.nbytes,), (1,))
    taken, bandwidths, at = [], [], 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 16:
        records = [arena[(at + i) % len(arena)] for i in range(experts)]
        at = (at + experts) % len(arena)
        started = time.perf_counter()
        native.compute_experts(layout, records, offsets, slots, hidden, rows)
        taken.append(time.perf_counter() - started)
        begin = (at + len(arena) // 2) % len(arena) * layout.record_bytes
        piece = everything[min(begin, arena.nbytes - READ) :][:READ]
        if len(taken) % max(16 // experts, 1) == 0:
            bandwidths.append(READ / native.read_seconds(piece))
    median, bandwidth = statistics.median(taken), statistics.median(bandwidths)
    rate = experts * layout.weight_bytes / median
    return {
        "us": round(1e6 * median),
        "GB/s": round(rate / 1e9, 1),
        "of": round(bandwidth / 1e9, 1),
        "%": round(100 * rate / bandwidth),
        "GFLOP/s": round(2 * layout.shape.parameters * pairs / median / 1e9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each row (default 0.5)")
    parser.add_argument("--threads", type=int, default=None, help="default: all, and one")
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    every = len(os.sched_getaffinity(0))
    chosen, *others = native.variants()
    counts = [options.threads] if options.threads else sorted({1, every})
    runs = [(chosen, name, threads, list(SHAPES)) for name in ("w4", "w8") for threads in counts]
    runs += [(chosen, name, counts[-1], FEW) for name in FORMATS if name not in ("w4", "w8")]
    runs += [(other, name, counts[-1], FEW) for other in others for name in ("w4", "w8")]
    rows = []
    for variant, name, threads, shapes in runs:
        native.use(variant)
        native.set_threads(threads)
        layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), FORMATS[name])
        arena = fill(layout)
        for shape in shapes:
            found = measure(layout, arena, *SHAPES[shape], options.seconds)
            rows.append(
                {"kernels": variant, "format": name, "threads": threads, "experts x tokens": shape, **found}
            )
    report.table(rows)
    report.write("expert_kernel", rows)


if __name__ == "__main__":
    main()
