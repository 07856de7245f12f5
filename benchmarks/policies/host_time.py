"""What the runtime's own Python takes a MoE layer: every kernel a no-op, Qwen3-30B-A3B's shape (48 layers, 128 experts, top-8).

Host time of a layer step = all of Executor.run but the prediction. It holds the copy of the routing to the host, planning
(shown apart, too), residency, the declared launches and copies, cache replacement (under its guard) and prefetching (kept on),
all by the default policies. The prediction, one linear map, is shown apart: on this machine's CPU, its arithmetic included. Two
devices:

- `queues`: streams that run nothing; an operation ends, on a clock of its own, when the profile says. The host's work alone,
  the device's bookkeeping of dependencies included, and what the limits are for.
  Beside it a bound on what is left to gain there: `operations` a layer step times `operation_us`, what issuing one takes in a
  loop that does nothing else, everything in the processor's caches. The rest of the host's work is not in it.
- `cpu`: dali's CPU device, whose streams really run: the activations' copies and packing and a copying thread are in its time.
  Experts' records are shortened (copies of whole ones would measure this machine's memory).

Routing and prediction are those of benchmarks/tools/qwen3_layers.py. The modelled step is that of the simulated device: the same
executor and routing under the profile's times, host time and prediction not included. The share of planning and prediction
beside the paper's (DALI, arXiv 2602.03495: 4.2-4.8 % of end-to-end time, 4.5 taken) is measured / (modelled step + all measured
host time), as if nothing of the host's work hid behind the device's.

    python benchmarks/policies/host_time.py [--steps N] [--profile NAME]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import Qwen3MoeConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.devices import Buffer, CpuDevice, Device, Operation, SimDevice, Stream, host_memory
from dali.devices.dependencies import dependencies
from dali.hardware.cost import CostModel
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.offload.dense import dense_seconds
from dali.policies import Policies, create
from dali.policies.once.vram import MOST_SCRATCH
from dali.policies.registry import DEFAULT
from dali.runtime import executor as runtime
from dali.runtime.executor import Executor
from dali.runtime.loans import Loans
from dali.runtime.residency import Residency
from dali.store.expert_pool import ExpertPool
from dali.telemetry import Telemetry
from qwen3_layers import (
    EXPERTS,
    FORMAT,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    SHAPE,
    TOP_K,
    WARM_UP,
    AlwaysOn,
    Foresight,
    cost_model,
    dense_model,
    microseconds,
    no_kernel,
    qwen3_30b_a3b,
    routing,
)

BATCHES, RESIDENT = (1, 32), (0.25, 0.5)
LIMIT_US = {1: 150, 32: 400}
PAPER_PERCENT = 4.5


class Queues(Device):
    """Streams that run nothing: an operation ends when its modelled seconds have passed after all it waits for."""

    def __init__(self, budget: int) -> None:
        super().__init__("queues", budget, dependencies())
        self._time = 0.0
        self._free = defaultdict[int, float](float)  # stream -> end of its last operation
        self.issued = 0

    def now(self) -> float:
        return self._time

    def charge(self, stream: Stream, modelled_seconds: float, label: str) -> None:
        self._free[stream.number] = max(self._free[stream.number], self._time) + modelled_seconds

    def _memory(self, nbytes: int) -> torch.Tensor:
        return host_memory(nbytes)

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        self.issued += 1
        number = operation.stream.number
        start = self._time
        if self._free[number] > start:
            start = self._free[number]
        for earlier in operation.waits:
            if earlier.handle > start:
                start = earlier.handle
        operation.handle = self._free[number] = start + operation.seconds[0]
        operation.finish(ran=True)

    def _finish(self, operation: Operation) -> None:
        self._time = max(self._time, operation.handle)

    def _poll(self, operation: Operation) -> bool:
        return bool(operation.handle <= self._time)


def build(
    device: Device, resident: float, model: CostModel, config: Qwen3MoeConfig, foresight: Foresight
) -> Executor:
    """An executor as offload/build.py builds it, over records of one 16th of an expert's width."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE // 16, Activation("silu")), get_format(FORMAT))
    shared = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    capacity = int(EXPERTS * resident)
    pool = ExpertPool([layout] * LAYERS, [[shared] * EXPERTS] * LAYERS)
    residency = Residency(
        device,
        Loans(device, pool),
        LAYERS,
        layout.record_bytes,
        LAYERS * capacity + MOST_SCRATCH,
        LAYERS * capacity,
        (model.costs.link, model.costs.link_contended),
    )
    executor = Executor(
        device,
        pool,
        residency,
        Policies(
            create("assign", DEFAULT["assign"]),
            create("prefetch", DEFAULT["prefetch"]),
            create("cache", DEFAULT["cache"], layers=LAYERS, experts=EXPERTS, capacity=capacity),
        ),
        foresight,
        model,
        Telemetry(modelled=not isinstance(device, CpuDevice)),
        dense_seconds(dense_model(config), model, LAYERS),
        kernel=no_kernel,
    )
    executor.guards.prefetch = AlwaysOn()  # type: ignore[assignment]
    return executor


@torch.inference_mode()
def timed(executor: Executor, foresight: Foresight, batch: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each layer step after the warm-up: host, planning, prediction."""
    hidden = torch.randn(batch, HIDDEN).to(torch.bfloat16)
    weights = torch.full((batch, TOP_K), 1 / TOP_K, dtype=torch.bfloat16)
    telemetry = executor._telemetry
    found: dict[str, list[float]] = {"host": [], "plan": [], "predict": []}
    for ids in routing(batch, steps):
        foresight.routing = ids
        for layer in range(LAYERS):
            planned, predicted = telemetry.plan_seconds, telemetry.predict_seconds
            started = time.perf_counter()
            executor.run(layer, hidden, ids[layer], weights)
            total = time.perf_counter() - started
            prediction = telemetry.predict_seconds - predicted
            found["host"].append(total - prediction)
            found["plan"].append(telemetry.plan_seconds - planned)
            found["predict"].append(prediction)
    return {part: seconds[WARM_UP * LAYERS :] for part, seconds in found.items()}


@torch.inference_mode()
def modelled_step(executor: Executor, foresight: Foresight, batch: int, steps: int) -> float:
    """Seconds of a decode step on the simulated device's clock."""
    hidden = torch.zeros(batch, HIDDEN, dtype=torch.bfloat16)
    weights = torch.zeros(batch, TOP_K, dtype=torch.bfloat16)
    begun = 0.0
    drawn = routing(batch, WARM_UP + steps)
    for step, ids in enumerate(drawn):
        if step == WARM_UP:
            begun = executor.device.now()
        foresight.routing = ids
        for layer in range(LAYERS):
            executor.run(layer, hidden, ids[layer], weights)
    return (executor.device.now() - begun) / steps


def operation_us(count: int = 3000) -> float:
    """Microseconds of issuing one launch that waits for one of another stream; median."""
    device = Queues(2**20)
    streams = device.stream("compute"), device.stream("copy")
    one, other, third = device.alloc(3 * 64).split(64)
    found = []
    for turn in range(count):
        started = time.perf_counter()
        device.launch(streams[turn % 2], no_kernel, (one, other), (third,), 1e-6, label="launch")
        found.append(time.perf_counter() - started)
    return 1e6 * statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=45, help="decode steps a setting (default 45: 2,160 layer steps)"
    )
    parser.add_argument("--profile", default="paper")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config, model = qwen3_30b_a3b(), cost_model(options.profile)
    foresight = Foresight()

    rows, shares = [], []
    for batch in BATCHES:
        active = statistics.fmean(len(layer.unique()) for ids in routing(batch, 5) for layer in ids)
        for resident in RESIDENT:
            for name in ("queues", "cpu"):
                device = Queues(2**40) if name == "queues" else CpuDevice(2**40)
                # The join is a kernel, too; the queues do not run it anyway.
                with patch.object(runtime, "_join", no_kernel) if name == "cpu" else nullcontext():
                    executor = build(device, resident, model, config, foresight)
                    found = timed(executor, foresight, batch, WARM_UP + options.steps)
                row: dict[str, Any] = {
                    "device": name,
                    "batch": batch,
                    "resident": resident,
                    "active": round(active, 1),
                }
                for part in ("host", "plan", "predict"):
                    row[f"{part}_us"], row[f"{part}_p90"] = microseconds(found[part])
                total = executor._telemetry.total()
                row |= {
                    "limit_us": LIMIT_US[batch],
                    "cpu": round(total.cpu / total.steps, 1),
                    "fetched": round(total.fetched / total.steps, 2),
                    "ahead": round(
                        (total.prefetch_used + total.prefetch_late + total.prefetch_wasted) / total.steps, 2
                    ),
                    "swaps": round(total.swaps / total.steps, 2),
                }
                if isinstance(device, Queues):
                    each, operations = operation_us(), device.issued / total.steps
                    row |= {
                        "operations": round(operations, 1),
                        "operation_us": round(each, 2),
                        "bound_us": round(operations * each, 1),
                    }
                rows.append(row)
                if name == "queues":
                    host = {part: LAYERS * statistics.fmean(seconds) for part, seconds in found.items()}
                    simulated = build(SimDevice(2**40), resident, model, config, foresight)
                    step = modelled_step(simulated, foresight, batch, 10)
                    shares.append(share(batch, resident, host, step))
    report.table(rows)
    print()
    report.table(shares)
    report.write(
        "host_time",
        rows,
        shape=SHAPE,
        layer_steps=options.steps * LAYERS,
        profile={"name": model.profile.name, "label": model.label},
        shares=shares,
    )


def share(batch: int, resident: float, host: dict[str, float], step: float) -> dict[str, Any]:
    """One step: what planning and prediction take of it, and all host time. `host`, `step`: seconds."""
    whole = step + host["host"] + host["predict"]
    return {
        "batch": batch,
        "resident": resident,
        "modelled_step_ms": round(1e3 * step, 2),
        "host_ms": round(1e3 * (host["host"] + host["predict"]), 2),
        "plan_and_predict_ms": round(1e3 * (host["plan"] + host["predict"]), 2),
        "plan_and_predict_percent": round(100 * (host["plan"] + host["predict"]) / whole, 1),
        "paper_percent": PAPER_PERCENT,
        "host_percent": round(100 * (whole - step) / whole, 1),
    }


if __name__ == "__main__":
    main()
