"""Attention to latents beside attention to every head's keys and values, made of latents once and kept, taking turns.

One token, or a prompt's 128, of one sequence after so many that are kept, in bfloat16 with w8 matrices; medians of a single
thread's processor time, what makes keys and values of new latents included.

    python benchmarks/kernels/latent_attention.py [--turns N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.kernels.packing import pack
from dali.step.kv import LayerKV

RANK, PLAIN, ROTATED, VALUE = 512, 128, 64, 128  # widths, DeepSeek-V2's and V3's
SHAPES = {"DeepSeek-V2-Lite": 16, "DeepSeek-V3": 128}  # heads
CASES = ((1, 256), (1, 1024), (1, 4096), (128, 0), (128, 2048))  # new tokens, kept ones
SCALE = (PLAIN + ROTATED) ** -0.5


def latent(up: Tensor, heads: int, query: Tensor, new: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    made = native.LatentHeads(up, heads, PLAIN, VALUE, get_format("w8"))

    def attend() -> Tensor:
        kv = LayerKV()
        if len(kept):
            kv.append(kept[None], kept[None, :, :0], None)
        place, out = kv.place(0, new[None], new[None, :, :0], None), query.new_empty(len(new), heads, VALUE)
        started = time.process_time()
        made.attend(query, new, [(place, len(new))], None, SCALE, None, out)
        attend.seconds = time.process_time() - started  # type: ignore[attr-defined]
        return out

    return attend


def expanded(up: Tensor, heads: int, query: Tensor, new: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    linear = native.Linear(pack(up, get_format("w8")), len(up), RANK, get_format("w8"))

    def expand(rows: Tensor) -> tuple[Tensor, Tensor]:
        made = linear(rows[:, :RANK]).view(len(rows), heads, PLAIN + VALUE).transpose(0, 1)
        keys = torch.cat([made[..., :PLAIN], rows[:, RANK:].expand(heads, -1, -1)], dim=2)
        return keys, made[..., PLAIN:]

    old = expand(kept) if len(kept) else None

    def attend() -> Tensor:
        kv = LayerKV()
        if old is not None:
            kv.append(*old, None)
        sample = query.new_empty(heads, len(new), VALUE)
        place, out = kv.place(0, query, sample, None), query.new_empty(len(new), heads, VALUE)
        started = time.process_time()
        native.attend_prompt(query, *expand(new), place, len(new), None, SCALE, None, out)
        attend.seconds = time.process_time() - started  # type: ignore[attr-defined]
        return out

    return attend


def measure(heads: int, tokens: int, kept: int, turns: int) -> dict[str, Any]:
    up = torch.randn(heads * (PLAIN + VALUE), RANK) * RANK**-0.5
    query = torch.randn(heads, tokens, PLAIN + ROTATED).bfloat16()
    new, old = (torch.randn(count, RANK + ROTATED).bfloat16() for count in (tokens, kept))
    ways = {"latents": latent(up, heads, query, new, old), "expanded": expanded(up, heads, query, new, old)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        found = []
        for name, attend in ways.items():
            found.append(attend())
            seconds[name].append(attend.seconds)  # type: ignore[attr-defined]
    torch.testing.assert_close(*found, rtol=0.1, atol=0.05)
    ours, other = (statistics.median(taken) for taken in seconds.values())
    return {
        "latents ms": round(1e3 * ours, 2),
        "expanded ms": round(1e3 * other, 2),
        "latents / expanded": round(ours / other, 2),
        "latents bytes": 2 * (RANK + ROTATED),
        "expanded bytes": 2 * heads * (PLAIN + ROTATED + VALUE),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    torch.set_num_threads(1)
    native.set_threads(1)
    rows = []
    for name, heads in SHAPES.items():
        for tokens, kept in CASES:
            row = {"shape of": name, "new": tokens, "kept": kept}
            rows.append(row | measure(heads, tokens, kept, options.turns))
    report.table(rows)
    report.write("latent_attention", rows)


if __name__ == "__main__":
    main()
