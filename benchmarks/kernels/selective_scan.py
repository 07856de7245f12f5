"""Mamba2's selective scan of one layer: dali's compiled one, token by token, and transformers' in torch, both taking turns.

A prompt's tokens are transformers' scan by chunks, a single one its recurrent form. bfloat16, sizes of published models.

    python benchmarks/kernels/selective_scan.py [--seconds S] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.nemotron_h import modeling_nemotron_h

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native
from dali.kernels.recurrence import scan_state

MODELS = {  # heads, width of a head, groups, state, chunk
    "Nemotron 3 Nano": (64, 64, 8, 128, 128),
    "Granite 4.0 H Tiny": (48, 64, 1, 128, 256),
}
TOKENS = (1, 64, 512)
FEWEST = 3


class Layer:
    """Random inputs of a scan, and both ways to compute it."""

    def __init__(self, sizes: tuple[int, int, int, int, int], tokens: int) -> None:
        heads, width, groups, state, self.chunk = sizes
        torch.manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape).to(torch.bfloat16)

        self.x, self.steps = random(tokens, heads, width), random(tokens, heads)
        self.b, self.c = random(tokens, groups, state), random(tokens, groups, state)
        self.rate, self.skip, self.bias = -torch.rand(heads).exp(), random(heads), random(heads)
        self.out = torch.empty(tokens, heads, width)
        self.states = [torch.zeros(scan_state(heads, width, state)) for _ in range(2)]
        self.theirs = torch.zeros(1, heads, width, state)

    def compiled(self) -> None:
        before, after = self.states
        stretches = [(slice(0, len(self.x)), before, after, [])]
        limits = 0.0, float("inf")
        native.selective_scan(
            self.x, self.steps, self.rate, self.b, self.c, self.skip, self.bias, limits, stretches, self.out
        )

    def transformers(self) -> None:
        options: dict[str, Any] = {"dt_softplus": True}
        if len(self.x) > 1:
            x, steps, b, c = (part[None] for part in (self.x, self.steps, self.b, self.c))
            options |= {"D": self.skip, "dt_bias": self.bias, "return_final_states": True}
            modeling_nemotron_h.mamba2_chunk_scan(x, steps, self.rate, b, c, self.chunk, **options)
            return
        width, state = self.theirs.shape[2:]
        steps = self.steps[:, :, None].expand(-1, -1, width)
        rate = self.rate[:, None, None].expand(-1, width, state)
        skip, bias = (part[:, None].expand(-1, width) for part in (self.skip, self.bias))
        modeling_nemotron_h.mamba2_selective_state_update(
            self.theirs, self.x, steps, rate, self.b, self.c, skip, dt_bias=bias, **options
        )


def measure(ways: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Each way's least milliseconds: what other programs take of the cores does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken[next(iter(ways))]) < FEWEST:
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    return {name: round(1e3 * min(times), 3) for name, times in taken.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row (default 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    rows = []
    for model, sizes in MODELS.items():
        for tokens in TOKENS:
            layer = Layer(sizes, tokens)
            found = measure(
                {"dali ms": layer.compiled, "transformers ms": layer.transformers}, options.seconds
            )
            times = found["transformers ms"] / found["dali ms"]
            rows.append(
                {
                    "model": model,
                    "tokens": tokens,
                    "threads": options.threads,
                    **found,
                    "times": round(times, 1),
                }
            )
    report.table(rows)
    report.write("selective_scan", rows)


if __name__ == "__main__":
    main()
