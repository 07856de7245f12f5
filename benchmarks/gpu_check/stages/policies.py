"""Published systems on the same routing, MoE layers alone: measured, and modelled with the profile that was measured before."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch

from dali.devices import SimDevice
from dali.hardware.cost import CostModel
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.runtime.executor import Executor
from dali.store.expert_pool import ExpertPool
from device import open_gpu
from gpu_layers import build_gpu, build_on, run_steps
from qwen3_layers import (
    EXPERTS,
    FORMAT,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    TOP_K,
    WARM_UP,
    Foresight,
    cost_model,
    no_kernel,
    routing,
)
from result import CannotRun, Result
from stages.host import several_records

SYSTEMS = (None, "dali-paper", "hybrimoe", "freetoken", "ktransformers")
RESIDENT, STEPS = (0.25, 0.5), 10
MOST_ERROR, LEAST_TAU = 0.15, 0.8


def run(result: Result) -> None:
    gpu = open_gpu()
    if result.profile is None:
        raise CannotRun("No stage has measured this machine's profile yet.")
    costs, pool = cost_model(str(result.profile)), several_records(LAYERS, EXPERTS)
    shares = [
        share
        for share in RESIDENT
        if LAYERS * EXPERTS * share * pool.layouts[0].record_bytes < gpu.free_bytes() - 2**30
    ]
    if not shares:
        raise CannotRun("A quarter of Qwen3-30B-A3B's experts does not fit the GPU's memory.")
    pairs = []
    for share, system in itertools.product(shares, SYSTEMS):
        measured, host = measure(gpu, pool, costs, share, system)
        expected = modelled(costs, share, system, host)
        pairs.append((measured, expected))
        error = abs(expected - measured) / measured
        row = {"system": system or "default", "resident": share, "host_us": 1e6 * host}
        result.row(**row, measured_ms=1e3 * measured, modelled_ms=1e3 * expected, error=error)
    errors = [abs(expected - measured) / measured for measured, expected in pairs]
    result.limit("median error", statistics.median(errors), most=MOST_ERROR)
    result.limit("Kendall's tau", kendall(pairs), least=LEAST_TAU)


def measure(
    gpu: Any, pool: ExpertPool, costs: CostModel, share: float, system: str | None
) -> tuple[float, float]:
    """(seconds of a step's layers, host's seconds a layer); medians."""
    foresight = Foresight("cuda")
    executor = build_gpu(gpu, pool, share, costs, foresight, system)
    drawn = routing(1, WARM_UP + STEPS)
    run_steps(executor, foresight, 1, drawn[:WARM_UP], torch.cuda.synchronize, waiting=True)
    found = run_steps(executor, foresight, 1, drawn[WARM_UP:], torch.cuda.synchronize, waiting=True)
    executor.device.close()
    return statistics.median(found.steps), 1e-6 * found.median_us()


@torch.inference_mode()
def modelled(costs: CostModel, share: float, system: str | None, host: float) -> float:
    """Seconds of a step's layers on the simulated device, each preceded by the host's work and its wait."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE // 16, Activation("silu")), get_format(FORMAT))
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)  # short: the times are the profile's
    pool = ExpertPool([layout] * LAYERS, [[record] * EXPERTS] * LAYERS)
    foresight = Foresight()
    before = host + costs.sync
    executor = build_on(
        Executor,
        SimDevice(2**40),
        pool,
        share,
        costs,
        foresight,
        system,
        dense_seconds=lambda tokens: before,
        kernel=no_kernel,
    )
    hidden = torch.zeros(1, HIDDEN, dtype=torch.bfloat16)
    weights = torch.zeros(1, TOP_K)
    found = []
    for ids in routing(1, WARM_UP + STEPS):
        foresight.routing = ids
        begun = executor.device.now()
        for layer in range(LAYERS):
            executor.run(layer, hidden, ids[layer], weights)
        found.append(executor.device.now() - begun)
    return statistics.median(found[WARM_UP:])


def kendall(pairs: list[tuple[float, float]]) -> float:
    """Kendall's tau of what was measured and what was modelled."""
    signs = [(one[0] - other[0]) * (one[1] - other[1]) for one, other in itertools.combinations(pairs, 2)]
    return sum((sign > 0) - (sign < 0) for sign in signs) / max(len(signs), 1)
