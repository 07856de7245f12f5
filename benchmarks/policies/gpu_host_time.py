"""What the host does for a MoE layer's step over a GPU, without one: Qwen3-30B-A3B's shape (48 layers, 128 experts, top-8), w4.

The driver is the tests' stand-in (tests/gpu/fake_cuda.cpp) told to do nothing but count, and to post the routing at once: what is
left is the host's own work. Host time of a layer = all of GpuExecutor.run but the prediction and the CPU's experts, which are
computed truly and timed by the native layers themselves. Its parts:

- routing: queueing what posts it and the activations' quantization, reading it, and sorting (token, choice) pairs
- plan: all of planning: assignment, residency, prefetching, cache replacement, guards
- execute: queueing copies, waits, launches and the sum, the CPU's experts taken out
- rest: Python's around the native call

Each setting is run in five rounds, of which the one with the lowest median counts.

The stand-in's own time is in begin and execute: a lock and a count a driver's call (`call_us`, an event's query through ctypes
taken out of the same loop over nothing). A true driver takes about 1.2 us a launch instead. torch's launches for the dense part
are not in it.

    python benchmarks/policies/gpu_host_time.py [--steps N] [--profile NAME]
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "gpu"))

from fake import FakeDriver, FakeGpu

import report
from dali.hardware.cost import CostModel
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.runtime.gpu import GpuExecutor
from dali.store.expert_pool import ExpertPool
from gpu_layers import PARTS, HostTime, build_gpu, run_steps
from layer_seconds import LIMIT_US
from qwen3_layers import (
    EXPERTS,
    FORMAT,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    SHAPE,
    WARM_UP,
    Foresight,
    cost_model,
    microseconds,
    routing,
)

BATCHES, RESIDENT = (1, 8), (0.25, 0.5)
ROUNDS = 5  # of which the quietest counts: what else runs on the machine only adds
LAUNCH, COPY, WAIT, RECORD = "cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuStreamWaitEvent", "cuEventRecord"


def one_record() -> ExpertPool:
    """A pool whose experts all are the same record: copies move nothing, and the CPU's experts are in its caches."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(FORMAT))
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    return ExpertPool([layout] * LAYERS, [[record] * EXPERTS] * LAYERS)


def idle_gpu(folder: Path) -> tuple[FakeDriver, FakeGpu]:
    """A stand-in with memory for all experts, which does nothing."""
    driver = FakeDriver(folder)
    driver.reset(0, total=2**40)
    driver.idle()
    return driver, FakeGpu("cuda", driver)


def build(gpu: FakeGpu, resident: float, costs: CostModel, foresight: Foresight) -> GpuExecutor:
    with patch("dali.offload.gpu.cubin", lambda *arguments: b"none is read"):
        return build_gpu(gpu, one_record(), resident, costs, foresight)


def measure(
    driver: FakeDriver, executor: GpuExecutor, foresight: Foresight, batch: int, steps: int
) -> tuple[HostTime, dict[str, Any]]:
    """(Host times after the warm-up, what a layer's step asked of the driver and where experts ran)."""
    drawn = routing(batch, WARM_UP + steps)
    run_steps(executor, foresight, batch, drawn[:WARM_UP])
    telemetry = executor._telemetry
    before = counted(driver), telemetry.total()
    rounds = [run_steps(executor, foresight, batch, drawn[WARM_UP:]) for _ in range(ROUNDS)]
    found = min(rounds, key=HostTime.median_us)
    after = counted(driver), telemetry.total()
    layers = LAYERS * steps * ROUNDS
    asked = {name: (after[0][name] - value) / layers for name, value in before[0].items()}
    for name in ("cpu", "resident", "fetched", "prefetched"):
        asked[f"{name}_experts"] = (getattr(after[1], name) - getattr(before[1], name)) / layers
    return found, asked


def counted(driver: FakeDriver) -> dict[str, float]:
    names = {"launches": LAUNCH, "copies": COPY, "waits": WAIT, "records": RECORD}
    counts = {name: float(driver.calls(symbol)) for name, symbol in names.items()}
    return counts | {"calls": float(driver.calls()), "bytes": float(driver.copied(COPY))}


def call_us(driver: FakeDriver, count: int = 20000) -> float:
    """Microseconds of one of the stand-in's calls."""
    query, event = driver.library.cuEventQuery, ctypes.c_void_p()
    driver.library.cuEventCreate(ctypes.byref(event), 0)
    nothing = driver.library.fake_used
    spent = []
    for call in (lambda: query(event), nothing):
        started = time.perf_counter()
        for _ in range(count):
            call()
        spent.append(time.perf_counter() - started)
    return round(1e6 * max(spent[0] - spent[1], 0.0) / count, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=45, help="decode steps a setting (default 45: 2,160 layer steps)"
    )
    parser.add_argument("--profile", default="rtx4090-desktop", help="that plans go by")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs, rows = cost_model(options.profile), []
    with tempfile.TemporaryDirectory() as folder:
        driver, gpu = idle_gpu(Path(folder))
        for batch in BATCHES:
            for resident in RESIDENT:
                foresight = Foresight()
                executor = build(gpu, resident, costs, foresight)
                found, asked = measure(driver, executor, foresight, batch, options.steps)
                executor.device.close()
                row: dict[str, Any] = {"batch": batch, "resident": resident}
                row["host_us"], row["host_p90"] = microseconds(found.host)
                row |= {f"{part}_us": round(found.median_us(part), 1) for part in PARTS}
                row |= {"limit_us": LIMIT_US, "mib": round(asked["bytes"] / 2**20, 2)}
                counts = {name: round(value, 2) for name, value in asked.items() if name != "bytes"}
                rows.append(row | counts)
        stand_in = call_us(driver)
    report.table(rows)
    profile = {"name": costs.profile.name, "label": costs.label}
    steps = options.steps * LAYERS
    report.write("gpu_host_time", rows, shape=SHAPE, layer_steps=steps, profile=profile, call_us=stand_in)


if __name__ == "__main__":
    main()
