"""The compiled attention of decoding tokens alone, on cold keys and values: one new token at the end of a long context.

The calls walk through several layers' keys and values, so no cache helps. `GB/s`: bytes of keys and values over the call's
median time; `%`: of the read bandwidth of the same threads, measured between the calls.

    python benchmarks/kernels/attention_kernel.py [--seconds S] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native

POOL = 2**29  # bytes of keys and values
READ = 2**27


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    width: int
    dtype: torch.dtype


SHAPES = {
    "OLMoE-1B-7B": Shape(16, 16, 128, torch.float32),
    "Qwen3-30B-A3B": Shape(32, 4, 128, torch.bfloat16),
    "gpt-oss-20b": Shape(64, 8, 64, torch.bfloat16),
}
CONTEXTS = (256, 4096, 16384)


def measure(shape: Shape, context: int, read: torch.Tensor, seconds: float) -> dict[str, Any]:
    one = shape.kv_heads * context * shape.width * shape.dtype.itemsize  # bytes of a layer's keys
    pool = torch.randn(max(POOL // one // 2, 2), 2, shape.kv_heads, context, shape.width, dtype=shape.dtype)
    query = torch.randn(shape.heads, 1, shape.width, dtype=shape.dtype)
    new = torch.randn(shape.kv_heads, 1, shape.width, dtype=shape.dtype)
    out = torch.empty(1, shape.heads, shape.width, dtype=shape.dtype)
    taken, bandwidths = [], []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken) < 16:
        keys, values = pool[len(taken) % len(pool)]
        token = (0, keys.data_ptr(), values.data_ptr(), context, context - 1, 0)
        started = time.perf_counter()
        native.attend(query, new, new, [token], shape.width**-0.5, None, out)
        taken.append(time.perf_counter() - started)
        if len(taken) % 64 == 1:
            bandwidths.append(READ / native.read_seconds(read))
    median, bandwidth = statistics.median(taken), statistics.median(bandwidths)
    multiplications = 2 * shape.heads * context * shape.width
    return {
        "us": round(1e6 * median),
        "GB/s": round(2 * one / median / 1e9, 1),
        "of": round(bandwidth / 1e9, 1),
        "%": round(100 * 2 * one / median / bandwidth),
        "GFLOP/s": round(2 * multiplications / median / 1e9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row (default 1)")
    parser.add_argument("--threads", type=int, default=None, help="default: all, and one")
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    every = len(os.sched_getaffinity(0))
    read = torch.ones(READ, dtype=torch.uint8)
    rows = []
    for threads in [options.threads] if options.threads else sorted({1, every}):
        native.set_threads(threads)
        for name, shape in SHAPES.items():
            for context in CONTEXTS:
                found = measure(shape, context, read, options.seconds)
                row = {"shape of": name, "context": context, "threads": threads}
                rows.append({**row, **found})
    report.table(rows)
    report.write("attention_kernel", rows)


if __name__ == "__main__":
    main()
