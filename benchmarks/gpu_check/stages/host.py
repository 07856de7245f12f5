"""What the host takes: a layer of a decoding step and how often it waits, a graph's launch, a posted routing."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from one_layer import Build, OneLayer
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.llm import LLM
from dali.store.expert_pool import ExpertPool
from device import builder, gpu_seconds, note_stand_in, open_gpu
from kernels.packed import random_records
from layer_seconds import LIMIT_US
from over_gpu import over_gpu
from qwen3_layers import (
    EXPERTS,
    FORMAT,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    TOP_K,
    WARM_UP,
    qwen3_30b_a3b,
)
from random_model import llm_of
from result import CannotRun, Result
from timed_model import HostTimes, run_steps

STEPS, SEVERAL = 20, 64
KERNELS = 14  # of a layer's dense part: norms, linears, heads, attention, router, prediction, post
WAITS = 1  # of the host, a layer
# As CUPTI names calls that wait, and what they did.
CALLS = re.compile(r"cu(da)?(Stream|Event|Device|Ctx|Thread)Synchronize|cudaMemcpy$")
SEEN = re.compile(r"(Stream|Event|Context) Sync")


def run(result: Result) -> None:
    gpu = open_gpu()
    note_stand_in(result, gpu)
    launches(result)
    flag(result, gpu, builder(gpu))
    pool = several_records(LAYERS, EXPERTS)
    needed = LAYERS * EXPERTS // 4 * pool.layouts[0].record_bytes
    if needed > gpu.free_bytes() - 2**30:
        raise CannotRun(
            f"A quarter of Qwen3-30B-A3B's experts, {needed / 2**30:.1f} GiB, does not fit the GPU's memory."
        )
    with torch.inference_mode():
        llm = llm_of(qwen3_30b_a3b(), pool)
        with over_gpu(llm, 0.25, "rtx4090-desktop"):
            for batch in (1, 8):
                host_us = a_layer(result, llm, batch)
                if batch == 1:
                    result.limit("host's work for a layer, us", host_us, most=LIMIT_US)


def several_records(layers: int, experts: int) -> ExpertPool:
    """Experts that are SEVERAL records in turn: more than a cache holds, less than a model has."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(FORMAT))
    arena = torch.zeros(SEVERAL, layout.record_bytes, dtype=torch.uint8)
    records = [[arena[(layer * 7 + e) % SEVERAL] for e in range(experts)] for layer in range(layers)]
    return ExpertPool([layout] * layers, records)


def a_layer(result: Result, llm: LLM, batch: int) -> float:
    """Microseconds of the host's work for a layer in a decoding step: all but choosing tokens, the waiting and the CPU's experts;
    median."""
    run_steps(llm, batch, WARM_UP)
    found = run_steps(llm, batch, STEPS)
    result.limit(f"waits of the host, a layer, batch {batch}", waits(llm, batch, STEPS), most=WAITS)
    parts = {f"{part}_us": found.median_us(part) for part in ("host", "plan", "python", "waited")}
    result.row(batch=batch, resident=0.25, **parts)
    return found.median_us()


def waits(llm: LLM, batch: int, steps: int) -> float:
    """How often the host waits for the GPU in a layer's step: for the routing's flag, and in the calls that synchronisations()
    counts. Those of half the steps are taken off, so what is done once does not count."""
    plans, half, layers = list[HostTimes](), steps // 2, llm.loaded.pool.layers
    calls = [
        synchronisations(lambda count=count: plans.append(run_steps(llm, batch, count)))  # type: ignore[misc]
        for count in (half, steps)
    ]
    flags = len(plans[-1].plans) / (layers * steps)
    return flags + (calls[1] - calls[0]) / (layers * (steps - half))


def synchronisations(work: Callable[[], object]) -> float:
    """Calls that wait for the GPU, torch's and dali's, as CUPTI sees them; not a number where it sees nothing."""
    sees = _ExperimentalConfig(enable_cuda_sync_events=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], experimental_config=sees) as found:
        work()
    names = [event.name for event in found.events() or []]
    if not any("Launch" in name for name in names):
        return float("nan")
    return float(max(sum(bool(kind.match(name)) for name in names) for kind in (CALLS, SEEN)))


def flag(result: Result, gpu: Any, build: Build, repeat: int = 200) -> None:
    """A routing that is posted to an idle host."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(FORMAT))
    layer = OneLayer(gpu, build, layout, random_records(layout, TOP_K), TOP_K, most_tokens=1)
    x = torch.zeros(1, HIDDEN, dtype=torch.bfloat16, device=gpu.place)
    ids, weights = torch.arange(TOP_K, device=gpu.place), torch.full((TOP_K,), 1 / TOP_K, device=gpu.place)
    addresses = [part.data_ptr() for part in (x, ids, weights)]
    queueing, seeing = [], []
    for _ in range(repeat):
        torch.cuda.synchronize()
        started = time.perf_counter()
        layer.layers.begin(0, 1, *addresses, 0, 0, gpu.queue())
        queued = time.perf_counter()
        layer.layers.routing(TOP_K, 0)
        queueing.append(queued - started)
        seeing.append(time.perf_counter() - queued)
    result.row(what="queueing what posts a routing", us=1e6 * statistics.median(queueing))
    result.row(what="its flag, until the host sees it", us=1e6 * statistics.median(seeing))
    result.figure(
        "sync", statistics.median(seeing), "from queueing what posts a routing until the host sees it"
    )


def launches(result: Result) -> None:
    """A small kernel in a full queue, and a graph of as many as a layer's dense part has, for the host and for the GPU."""
    x = torch.ones(1, device="cuda")
    count = 500

    def several() -> None:
        for _ in range(count):
            x.add_(1)

    several()
    torch.cuda.synchronize()
    queued = gpu_seconds(several, ahead=20_000_000) / count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(KERNELS):
            x.add_(1)

    def replay() -> None:
        for _ in range(count):
            graph.replay()

    replayed = host_seconds(replay) / count
    computed = gpu_seconds(replay, ahead=20_000_000) / count
    rows = {
        "a kernel in a full queue, for the GPU": queued,
        f"launching a graph of {KERNELS} kernels": replayed,
        "such a graph, for the GPU": computed,
    }
    for what, seconds in rows.items():
        result.row(what=what, us=1e6 * seconds)
    result.figure("launch", queued, "a small kernel in a full queue")


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
