"""The compiled attention of decoding tokens alone, on cold keys and values: one new token at the end of a long context.

The calls walk through several layers' keys and values, so no cache helps. `GB/s`: bytes of keys and values over the call's
median time; `%`: of the read bandwidth of the same threads, measured between the calls.

`--q8` measures keys and values in 8 bits beside those of the model's type, in turns: `of model's` is the median of the
quotients of two calls that follow one another.

    python benchmarks/kernels/attention_kernel.py [--seconds S] [--threads N] [--q8]
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
from dali.kernels.kept_rows import row_bytes

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


class Pool:
    """Keys and values of several layers, in the model's type or in 8 bits, and how long attention to each of them took."""

    def __init__(self, shape: Shape, context: int, in_q8: bool) -> None:
        width = row_bytes(shape.width) if in_q8 else shape.width * shape.dtype.itemsize
        self.one = shape.kv_heads * context * width  # bytes of a layer's keys
        self.shape, self.context, self.in_q8 = shape, context, in_q8
        sizes = max(POOL // self.one // 2, 2), 2, shape.kv_heads, context
        if in_q8:
            self.layers = torch.randint(
                0, 60, (*sizes, width), dtype=torch.uint8
            )  # scales, too, are small numbers
        else:
            self.layers = torch.randn(*sizes, shape.width, dtype=shape.dtype)
        self.query = torch.randn(shape.heads, 1, shape.width, dtype=shape.dtype)
        self.new = torch.randn(shape.kv_heads, 1, shape.width, dtype=shape.dtype)
        self.out = torch.empty(1, shape.heads, shape.width, dtype=shape.dtype)
        self.taken: list[float] = []

    def attend(self) -> None:
        keys, values = self.layers[len(self.taken) % len(self.layers)]
        token = (0, keys.data_ptr(), values.data_ptr(), self.context, self.context - 1, 0, self.in_q8)
        started = time.perf_counter()
        native.attend(self.query, self.new, self.new, [token], self.shape.width**-0.5, None, self.out)
        self.taken.append(time.perf_counter() - started)


def measure(shape: Shape, context: int, read: torch.Tensor, seconds: float, q8: bool) -> list[dict[str, Any]]:
    pools = [Pool(shape, context, in_q8) for in_q8 in ((False, True) if q8 else (False,))]
    bandwidths = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(pools[0].taken) < 16:
        for pool in pools:
            pool.attend()
        if len(pools[0].taken) % 64 == 1:
            bandwidths.append(READ / native.read_seconds(read))
    bandwidth = statistics.median(bandwidths)
    rows = []
    for pool in pools:
        median = statistics.median(pool.taken)
        multiplications = 2 * shape.heads * context * shape.width
        row = {
            "us": round(1e6 * median),
            "GB/s": round(2 * pool.one / median / 1e9, 1),
            "of": round(bandwidth / 1e9, 1),
            "%": round(100 * 2 * pool.one / median / bandwidth),
            "GFLOP/s": round(2 * multiplications / median / 1e9),
        }
        if q8:
            quotients = [ours / plain for ours, plain in zip(pool.taken, pools[0].taken, strict=True)]
            row = {"kept in": "q8" if pool.in_q8 else str(shape.dtype).removeprefix("torch."), **row}
            row["of model's"] = round(statistics.median(quotients), 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row (default 1)")
    parser.add_argument("--threads", type=int, default=None, help="default: all, and one")
    parser.add_argument("--q8", action="store_true", help="beside keys and values in 8 bits")
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
                row = {"shape of": name, "context": context, "threads": threads}
                found = measure(shape, context, read, options.seconds, options.q8)
                rows += [{**row, **each} for each in found]
    report.table(rows)
    report.write("attention_kernel_q8" if options.q8 else "attention_kernel", rows)


if __name__ == "__main__":
    main()
