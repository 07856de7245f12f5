"""The compiled expert kernel alone: hidden 2048, intermediate 1024, SwiGLU; every format, by every instruction set there is.

Experts lie in a pool of 1 GiB that the calls walk through, so no cache helps. `GB/s`: packed bytes over the call's median
time; `%`: of the read bandwidth of the same threads, measured between the calls on the same memory. `1..8`: experts with 1,
2, ... 8 tokens in turn. `hot`: one expert of 512 x 512, eight times a call, one token each, from the caches: what one thread's
arithmetic allows where memory does not limit, by its fastest call; `cycles`: for 32 columns of 16 rows there, at the clock rate
that the system names. Quantized experts are random blocks of the GGUF type with the same values
(benchmarks/tools/random_blocks.py).

    python benchmarks/kernels/expert_kernel.py [--formats q4k ...] [--variants avx512 ...] [--seconds S] [--threads N] [--add]

--add keeps the last result's rows of other formats and variants.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, GROUP, TILE_ROWS, Format
from dali.kernels.packing import pack
from dali.store.arena import Arena
from dali.store.gguf.blocks import BLOCK_TYPES
from dali.store.gguf.pack import pack_blocks
from random_blocks import random_blocks

COLD, HOT = ExpertShape(2048, 1024, Activation("silu")), ExpertShape(512, 512, Activation("silu"))
POOL = 2**30
READ = 128 * 2**20  # bytes read to measure bandwidth
SHAPES: dict[str, tuple[int, list[int]]] = {  # name -> experts, and their tokens in turn
    "1 x 1": (1, [1]),
    "8 x 1": (8, [1]),
    "8 x 8": (8, [8]),
    "64 x 1..8": (64, list(range(1, 9))),
    "1 x 16": (1, [16]),
    "1 x 64": (1, [64]),
    "8 x 64": (8, [64]),
}
EVERYWHERE = ["8 x 1", "8 x 8", "1 x 64"]
IN_FULL = ["w4", "w8"]  # all shapes, by the best instruction set, by one thread as well
TYPES = {"w8": "Q8_0", "w4": "Q4_0"}  # GGUF's names where they are no variation of the format's


def type_of(format: Format) -> str:
    """The GGUF type with the format's values."""
    return TYPES.get(format.name) or re.sub(r"^Q(\d)K$", r"Q\1_K", format.name.upper())


def make_record(layout: ExpertLayout) -> torch.Tensor:
    """A random expert."""
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    types = {type.name: type for type in BLOCK_TYPES.values()}
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    for name, (rows, columns) in layout.shape.matrices.items():
        part = layout.part(record, name)
        if layout.format.quantized:
            type = types[type_of(layout.format)]
            pack_blocks(random_blocks(type.name, rows, columns, generator), type, layout.format, part)
        else:
            part.copy_(pack(torch.randn(rows, columns) / columns**0.5, layout.format))
    return record


def fill(record: torch.Tensor) -> Arena:
    """A pool of one expert, over and over."""
    arena = Arena(POOL // len(record), len(record))
    for index in range(len(arena)):
        arena[index].copy_(record)
    return arena


class Call:
    """A call of the kernel on so many tokens of each expert."""

    def __init__(self, layout: ExpertLayout, tokens: list[int]) -> None:
        self.layout, self.offsets = layout, [0]
        for count in tokens:
            self.offsets.append(self.offsets[-1] + count)
        self.pairs = self.offsets[-1]
        self._hidden = torch.randn(self.pairs, layout.shape.hidden)
        self._rows, self._slots = torch.empty_like(self._hidden), torch.arange(self.pairs)

    def seconds(self, records: list[torch.Tensor]) -> float:
        started = time.perf_counter()
        native.compute_experts(self.layout, records, self.offsets, self._slots, self._hidden, self._rows)
        return time.perf_counter() - started


def measure_cold(layout: ExpertLayout, arena: Arena, shape: str, seconds: float) -> dict[str, Any]:
    experts, tokens = SHAPES[shape]
    call = Call(layout, [tokens[expert % len(tokens)] for expert in range(experts)])
    everything = arena[0].as_strided((arena.nbytes,), (1,))
    taken, bandwidths, at = [], [], 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 16:
        records = [arena[(at + i) % len(arena)] for i in range(experts)]
        at = (at + experts) % len(arena)
        taken.append(call.seconds(records))
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
        "GFLOP/s": round(2 * layout.shape.parameters * call.pairs / median / 1e9),
        "cycles": None,
    }


def measure_hot(layout: ExpertLayout, seconds: float) -> dict[str, Any]:
    """By one thread, its fastest call."""
    record = make_record(layout)
    call = Call(layout, [1] * 8)
    until = time.perf_counter() + seconds
    taken: list[float] = []
    while time.perf_counter() < until or len(taken) < 16:
        taken.append(call.seconds([record] * call.pairs))
    groups = call.pairs * layout.shape.parameters / (GROUP * TILE_ROWS)
    mhz = report.clock_mhz()
    return {
        "us": round(1e6 * min(taken)),
        "GB/s": round(call.pairs * layout.weight_bytes / min(taken) / 1e9, 1),
        "of": None,
        "%": None,
        "GFLOP/s": round(2 * layout.shape.parameters * call.pairs / min(taken) / 1e9),
        "cycles": mhz and round(min(taken) * mhz * 1e6 / groups, 1),
    }


def measure(
    variant: str, format: Format, threads: list[int], shapes: list[str], seconds: float
) -> list[dict[str, Any]]:
    """The rows of one format and instruction set, cold by so many threads, then hot."""
    native.use(variant)
    layout = ExpertLayout(COLD, format)
    arena = fill(make_record(layout))
    rows = []
    for count in threads:
        native.set_threads(count)
        for shape in shapes:
            row = measure_cold(layout, arena, shape, seconds)
            rows.append({"threads": count, "experts x tokens": shape, **row})
    native.set_threads(1)
    hot = measure_hot(ExpertLayout(HOT, format), seconds)
    rows.append({"threads": 1, "experts x tokens": "hot", **hot})
    return [{"kernels": variant, "format": format.name, **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    variants = native.variants() if native.enabled() else parser.error("the kernels were not compiled")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each row (default 0.5)")
    parser.add_argument("--threads", type=int, default=None, help="default: all, and one")
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    every = len(os.sched_getaffinity(0))
    last = report.BENCHMARKS / "results" / "expert_kernel.json"
    rows = json.loads(last.read_text())["rows"] if options.add else []
    for variant in options.variants:
        for name in options.formats:
            rows = [row for row in rows if (row["kernels"], row["format"]) != (variant, name)]
            full = name in IN_FULL and variant == variants[0]
            threads = (
                sorted({1, every} if full else {every}) if options.threads is None else [options.threads]
            )
            shapes = list(SHAPES) if full else EVERYWHERE
            rows += measure(variant, FORMATS[name], threads, shapes, options.seconds)
            report.write("expert_kernel", rows)  # what an interruption leaves
    report.table(rows)


if __name__ == "__main__":
    main()
