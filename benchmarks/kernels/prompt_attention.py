"""The compiled attention of a prompt's tokens, which has decoding's bits, beside torch's, taking turns.

512 new tokens of one sequence after so many that are kept already; medians, and how much longer ours takes.

    python benchmarks/kernels/prompt_attention.py [--turns N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native
from dali.step.kv import LayerKV

NEW, WIDTH = 512, 128
SHAPES = {"OLMoE-1B-7B": (16, 16), "Qwen3-30B-A3B": (32, 4)}  # heads, heads of keys and values
KEPT = (0, 3584)


def measure(heads: int, kv_heads: int, kept: int, dtype: torch.dtype, turns: int) -> dict[str, Any]:
    query = torch.randn(NEW, heads, WIDTH).to(dtype).transpose(0, 1)
    new = torch.randn(2, NEW, kv_heads, WIDTH).to(dtype).transpose(1, 2)
    old = torch.randn(2, kv_heads, kept, WIDTH).to(dtype)
    keys, values = torch.cat([old, new], dim=2)
    mask = torch.arange(kept + NEW)[None] <= torch.arange(kept, kept + NEW)[:, None]
    scale = WIDTH**-0.5
    seconds: dict[str, list[float]] = {"dali": [], "torch": []}
    for _ in range(turns):
        kv = LayerKV()
        if kept:
            kv.append(*old, None)
        place, out = kv.place(0, *new, None), torch.empty(NEW, heads, WIDTH, dtype=dtype)
        started = time.perf_counter()
        native.attend_prompt(query, *new, place, NEW, None, scale, None, out)
        seconds["dali"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=heads != kv_heads
        )
        seconds["torch"].append(time.perf_counter() - started)
    torch.testing.assert_close(out.transpose(0, 1), theirs[0], rtol=0.02, atol=0.02)
    ours, torchs = (statistics.median(taken) for taken in seconds.values())
    return {
        "dali ms": round(1e3 * ours, 1),
        "torch ms": round(1e3 * torchs, 1),
        "dali / torch": round(ours / torchs, 2),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    native.set_threads(torch.get_num_threads())
    rows = []
    for name, (heads, kv_heads) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            for kept in KEPT:
                row = {"shape of": name, "dtype": str(dtype).removeprefix("torch."), "kept": kept}
                rows.append(row | measure(heads, kv_heads, kept, dtype, options.turns))
    report.table(rows)
    report.write("prompt_attention", rows)


if __name__ == "__main__":
    main()
