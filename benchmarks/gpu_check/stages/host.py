"""What the host takes: a layer's step, torch's launches, a graph's, a wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from dali.hardware.cost import CostModel
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.store.expert_pool import ExpertPool
from device import gpu_seconds, open_gpu
from gpu_layers import PARTS, build_gpu, run_steps
from qwen3_layers import FORMAT, HIDDEN, INTERMEDIATE, WARM_UP, Foresight, cost_model, routing
from result import CannotRun, Result

LIMIT_US, STEPS, SEVERAL = 30, 20, 64


def run(result: Result) -> None:
    gpu = open_gpu()
    launches(result)
    costs, pool = cost_model("rtx4090-desktop"), several_records(48, 128)
    needed = 48 * 32 * pool.layouts[0].record_bytes
    if needed > gpu.free_bytes() - 2**30:
        raise CannotRun(
            f"A quarter of Qwen3-30B-A3B's experts, {needed / 2**30:.1f} GiB, does not fit the GPU's memory."
        )
    for batch in (1, 8):
        host_us = a_layer(result, gpu, pool, costs, batch)
        if batch == 1:
            result.limit("host's work for a layer, us", host_us, most=LIMIT_US)


def several_records(layers: int, experts: int) -> ExpertPool:
    """Experts that are SEVERAL records in turn: more than a cache holds, less than a model has."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(FORMAT))
    arena = torch.zeros(SEVERAL, layout.record_bytes, dtype=torch.uint8)
    records = [[arena[(layer * 7 + e) % SEVERAL] for e in range(experts)] for layer in range(layers)]
    return ExpertPool([layout] * layers, records)


def a_layer(result: Result, gpu: object, pool: ExpertPool, costs: CostModel, batch: int) -> float:
    """Microseconds of a layer's step but the waiting and the CPU's experts; median."""
    foresight = Foresight("cuda")
    executor = build_gpu(gpu, pool, 0.25, costs, foresight)  # type: ignore[arg-type]
    drawn = routing(batch, WARM_UP + STEPS)
    run_steps(executor, foresight, batch, drawn[:WARM_UP], torch.cuda.synchronize, waiting=True)
    found = run_steps(executor, foresight, batch, drawn[WARM_UP:], torch.cuda.synchronize, waiting=True)
    executor.device.close()
    parts = {f"{part}_us": found.median_us(part) for part in PARTS}
    result.row(batch=batch, resident=0.25, host_us=found.median_us(), **parts)
    return found.median_us()


def launches(result: Result) -> None:
    """torch's own costs: each kernel from Python, in a graph, and when the host waits for it."""
    x = torch.ones(1, device="cuda")
    count = 500

    def several() -> None:
        for _ in range(count):
            x.add_(1)

    several()
    torch.cuda.synchronize()
    eager = host_seconds(several) / count
    queued = gpu_seconds(several, ahead=20_000_000) / count

    def waiting() -> None:
        for _ in range(count):
            x.add_(1)
            torch.cuda.synchronize()

    waited = host_seconds(waiting) / count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(9):
            x.add_(1)
    replayed = host_seconds(lambda: [graph.replay() for _ in range(count)]) / count
    rows = {
        "a kernel that torch launches": eager,
        "the same, for the GPU": queued,
        "the same, waited for": waited,
        "a graph of 9 kernels": replayed,
    }
    for what, seconds in rows.items():
        result.row(what=what, us=1e6 * seconds)
    result.figure("launch", queued, "a small kernel in a full queue")
    result.figure("sync", max(waited - eager, 1e-7), "waiting for a small kernel")


def host_seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Seconds until `work` returns; the queue is empty when it begins. Median."""
    found = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
        torch.cuda.synchronize()
    return statistics.median(found)
