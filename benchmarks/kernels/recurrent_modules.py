"""Compiled recurrent kernels beside transformers' code in torch, taking turns: the gated delta rule and the convolution of
Qwen3-Next's shape, and LFM2's convolution.

A prompt of 512 tokens, where transformers takes its form in chunks of 64, and one token of decoding, where it takes its recurrent
form; medians, and how much longer ours takes.

    python benchmarks/kernels/recurrent_modules.py [--turns N]
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
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels import native

TOKENS = (512, 1)
HEADS, KEY_HEADS, WIDTH, TAPS = 32, 16, 128, 4  # Qwen3-Next-80B-A3B
CHANNELS = {
    "Qwen3-Next-80B-A3B": ((HEADS + 2 * KEY_HEADS) * WIDTH, TAPS, "silu"),
    "LFM2-8B-A1B": (2048, 3, None),
}


def timed(turns: int, **ways: Callable[[], Any]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    ours, theirs = (statistics.median(taken) for taken in seconds.values())
    return {
        "dali ms": round(1e3 * ours, 3),
        "torch ms": round(1e3 * theirs, 3),
        "dali / torch": round(ours / theirs, 2),
    }


def delta_rule(tokens: int, turns: int) -> dict[str, Any]:
    query, key = torch.randn(2, 1, tokens, KEY_HEADS, WIDTH)
    value = torch.randn(1, tokens, HEADS, WIDTH)
    decay, beta = -torch.rand(1, tokens, HEADS), torch.rand(1, tokens, HEADS)
    before, after = torch.randn(2, HEADS, WIDTH, WIDTH)
    out = torch.empty_like(value[0])
    form = (
        qwen3_next.torch_chunk_gated_delta_rule if tokens > 1 else qwen3_next.torch_recurrent_gated_delta_rule
    )
    rows = [part[0] for part in (query, key, value, decay, beta)]

    def ours() -> None:
        native.delta_rule(*rows, True, [(slice(0, tokens), before, after, [])], out)

    def theirs() -> Any:
        return form(
            query,
            key,
            value,
            g=decay,
            beta=beta,
            initial_state=before[None],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )

    ours()
    torch.testing.assert_close(out, theirs()[0][0], rtol=1e-3, atol=1e-3)
    return timed(turns, dali=ours, torch=theirs)


def convolution(channels: int, taps: int, activation: str | None, tokens: int, turns: int) -> dict[str, Any]:
    x, weight = torch.randn(tokens, channels), torch.randn(channels, taps)
    before, after = torch.zeros(2, taps - 1, channels)
    out, state = torch.empty_like(x), torch.zeros(1, channels, taps)

    def ours() -> None:
        native.convolve(x, weight, None, activation, [(slice(0, tokens), before, after, [])], out)

    def theirs() -> Any:
        if tokens > 1:
            return qwen3_next.causal_conv1d_fn(x.T[None], weight, None, activation)
        return qwen3_next.causal_conv1d_update(x.T[None], state.zero_(), weight, None, activation)

    ours()
    torch.testing.assert_close(out, theirs()[0].T, rtol=1e-4, atol=1e-4)
    return timed(turns, dali=ours, torch=theirs)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    if not native.enabled():
        parser.error("the kernels were not compiled")
    native.set_threads(torch.get_num_threads())
    rows = []
    for tokens in TOKENS:
        shape = {"shape of": "Qwen3-Next-80B-A3B", "tokens": tokens}
        rows.append({"what": "delta rule"} | shape | delta_rule(tokens, options.turns))
        for name, sizes in CHANNELS.items():
            shape = {"shape of": name, "tokens": tokens}
            rows.append({"what": "convolution"} | shape | convolution(*sizes, tokens, options.turns))
    report.table(rows)
    report.write("recurrent_modules", rows)


if __name__ == "__main__":
    main()
