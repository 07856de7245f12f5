"""Kernels against the memory's bandwidth: 1 to 64 experts of Qwen3-30B-A3B's shape, 1 to 64 tokens each, no cache holds them."""

from __future__ import annotations

import itertools

import torch
from one_layer import OneLayer

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from device import HBM, builder, copy_bandwidth, gpu_seconds, open_gpu
from qwen3_layers import HIDDEN, INTERMEDIATE
from result import CannotRun, Result

FORMATS, EXPERTS, TOKENS = ("w4", "w8"), (1, 3, 8, 64), (1, 8, 64)
RECORDS = 64
CALLS = 256  # (token, choice) pairs that a launch's call holds: more pass through tables
LAUNCHES = 40  # queued at once
LEAST, LEAST_HBM = 0.75, 0.55


def run(result: Result) -> None:
    gpu = open_gpu()
    device = torch.cuda.get_device_properties(0)
    copy = copy_bandwidth()
    result.note(f"A copy within the GPU's memory moves {copy / 1e9:.0f} GB/s, read and written.")
    least = LEAST_HBM if copy > HBM else LEAST
    streamed, rates = [], []
    for format in FORMATS:
        shape = ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu"))
        layout = ExpertLayout(shape, get_format(format))
        records = torch.randint(0, 256, (RECORDS, layout.record_bytes), dtype=torch.uint8)
        rounds = max(1, -(-4 * device.L2_cache_size // (RECORDS * layout.record_bytes)))
        if RECORDS * rounds * layout.record_bytes > gpu.free_bytes() * 0.8:
            raise CannotRun("The GPU has too little free memory for experts that its caches do not hold.")
        for experts in EXPERTS:
            slots = [*range(RECORDS)] * rounds
            layer = OneLayer(
                gpu, builder(gpu), layout, records, experts, most_tokens=max(TOKENS), slots=slots
            )
            for tokens in TOKENS:
                seconds = measure(layer, experts, tokens)
                share = experts * layout.weight_bytes / seconds / copy
                flops = 2 * 3 * HIDDEN * INTERMEDIATE * experts * tokens / seconds
                result.row(
                    format=format,
                    experts=experts,
                    tokens=tokens,
                    us=1e6 * seconds,
                    share=share,
                    tflops=flops / 1e12,
                )
                if experts >= 8 and tokens <= 8:
                    result.limit(f"share, {format}, {experts} experts, {tokens} tokens", share, least=least)
                if format == "w4" and experts == 8 and tokens == 1:
                    streamed.append(experts * layout.weight_bytes / seconds)
                if format == "w4" and tokens == max(TOKENS) and experts == 8:
                    rates.append(flops)
    result.figure("gpu_bandwidth", streamed[0], "w4 experts, 8 at once, a token each")
    result.figure("gpu_rate", rates[0], f"w4 experts, 8 at once, {max(TOKENS)} tokens each")
    beside(result)


def measure(layer: OneLayer, experts: int, tokens: int) -> float:
    """Seconds of one launch of `experts` experts, each of which has all `tokens` tokens; the sum at the end not counted."""
    place, slots = layer.gpu.place, len(layer.in_slots)
    starts = itertools.cycle(range(0, slots - experts + 1, experts))
    x = torch.randn(tokens, HIDDEN, device=place).to(torch.bfloat16)
    ids = torch.arange(experts, device=place).repeat(tokens, 1)
    weights, out = torch.full((tokens, experts), 1 / experts, device=place), torch.empty_like(x)

    def seconds(launches: int) -> float:
        def queue() -> None:
            first = [next(starts) for _ in range(launches)]
            plan = [(list(range(experts)), list(range(at, at + experts)), False) for at in first]
            layer.layers.execute([], plan, [], out.data_ptr())

        return gpu_seconds(queue, lambda: layer.begin(x, ids, weights))

    launches = LAUNCHES if experts * tokens <= CALLS else 1  # what needs tables has room for one launch
    return max(seconds(launches) - seconds(0), 1e-9) / launches


def beside(result: Result) -> None:
    """torch's grouped product in bfloat16, gate and up only, for comparison."""
    try:
        weights = torch.randn(8, HIDDEN, 2 * INTERMEDIATE, device="cuda", dtype=torch.bfloat16)
        x = torch.randn(8, HIDDEN, device="cuda", dtype=torch.bfloat16)
        ends = torch.arange(1, 9, device="cuda", dtype=torch.int32)
        seconds = gpu_seconds(lambda: torch._grouped_mm(x, weights, offs=ends))
        result.row(beside="torch._grouped_mm, bf16, gate and up", experts=8, tokens=1, us=1e6 * seconds)
    except Exception as error:
        result.note(f"torch's grouped product does not run here ({' '.join(str(error).split())[:200]}).")
