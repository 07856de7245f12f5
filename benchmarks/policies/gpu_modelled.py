"""Modelled decoding speed over a GPU: Qwen3-30B-A3B as w4, batch 1, a quarter of the experts resident. No GPU takes part.

What the runtime asks of the driver is counted on the tests' stand-in (gpu_host_time.py): each layer step's experts on the CPU, on
the GPU, the copies. What that takes is computed from a published hardware profile, so every time here is modelled. A layer takes

    max(dense part on the GPU, torch's issuing it)    bytes / bandwidth; kernels x EAGER_US
    + the wait for the routing                        the profile's sync
    + the host's work                                 measured on the machine that runs this, gpu_host_time.py
    + the driver's calls                              launches x LAUNCH_US, other calls x CALL_US
    + max(CPU's experts, GPU's experts, copies they wait for, both's bytes out of RAM / its bandwidth)

and no less than all its copies take on the link, and all its bytes out of RAM, those for later layers included. The floor is what
no runtime could beat with these residents: the dense part's bytes over the GPU's bandwidth, then the larger of the residents'
bytes over the GPU's bandwidth and the others' over the RAM's, which CPU and link share.

`now` is the code as it is. `planned` is the same with the host's work at its limit (30 us) and the dense part's launches replayed
from a graph, one a layer. Plans go by the clock of the machine that runs this, where the stand-in's copies are over at once; so
both are estimates of their sum, not of each part.

    python benchmarks/policies/gpu_modelled.py [--steps N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.hardware.cost import CostModel
from dali.hooks import seam
from dali.offload.build import dense_size
from gpu_host_time import ROUNDS, build, idle_gpu, measure
from layer_seconds import LAUNCH_US, layer_seconds
from qwen3_layers import (
    HIDDEN,
    LAYERS,
    SHAPE,
    Foresight,
    cost_model,
    dense_model,
    qwen3_30b_a3b,
)

PROFILES = ("rtx4090-desktop", "rtx3060-desktop")
RESIDENT = 0.25
CALL_US = 0.5  # a copy, a wait, a record; an assumption, to be measured, as layer_seconds.LAUNCH_US is
EAGER_US = 5.0  # a kernel that torch launches from Python, its views and allocations included: likewise
TARGET = 80  # percent of the floor


class Kernels(TorchDispatchMode):
    """Counts the operators that compute something, which views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(one.alias_info is not None for one in func._schema.returns)
        return func(*args, **(kwargs or {}))


def dense_kernels() -> int:
    """Kernels that torch launches for a layer's dense part: those of two layers, less those of one."""
    counts = []
    for layers in (1, 2):
        config = qwen3_30b_a3b()  # in small: kernels do not grow in number with their work
        config.num_hidden_layers, config.vocab_size, config.hidden_size, config.num_experts = (
            layers,
            128,
            64,
            8,
        )
        model = Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()
        seam.strip_experts(model)
        seam.install(model, [lambda hidden, ids, weights: hidden] * layers)
        with torch.inference_mode(), Kernels() as kernels:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
        counts.append(kernels.count)
    return counts[1] - counts[0]


def modelled(
    costs: CostModel,
    plans: list[tuple[int, int, int, int]],
    asked: dict[str, Any],
    host_us: float,
    kernels: int,
) -> dict[str, Any]:
    """One profile's row."""
    nbytes, _, _ = dense_size(dense_model(qwen3_30b_a3b()))
    hits, issue, host = asked["resident_experts"], 1e-6 * EAGER_US * kernels, 1e-6 * host_us
    driver = 1e-6 * (LAUNCH_US * asked["launches"] + CALL_US * (asked["calls"] - asked["launches"]))
    layer = layer_seconds(costs, plans, hits, nbytes / LAYERS, issue, host, driver)
    row: dict[str, Any] = {"profile": costs.profile.name}
    for name, seconds in (("floor", layer.floor), ("now", layer.now), ("planned", layer.planned)):
        row[f"{name}_tps"] = round(1 / (LAYERS * seconds), 1)
    row["now_percent"] = round(100 * layer.floor / layer.now, 1)
    row["planned_percent"] = round(100 * layer.floor / layer.planned, 1)
    row["target_percent"] = TARGET
    parts = {"dense": layer.dense, "issue": issue, "wait": costs.sync, "host": host, "driver": driver}
    parts |= {"experts": layer.experts, "copies": layer.copies}
    row["hits"] = round(hits, 2)
    return row | {f"{name}_us": round(1e6 * seconds, 1) for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=45, help="decode steps (default 45: 2,160 layer steps)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels, rows = dense_kernels(), []
    with tempfile.TemporaryDirectory() as folder:
        driver, gpu = idle_gpu(Path(folder))
        for name in PROFILES:
            costs, foresight = cost_model(name), Foresight()
            executor = build(gpu, RESIDENT, costs, foresight)
            found, asked = measure(driver, executor, foresight, 1, options.steps)
            plans = executor.device.layers.plans[-ROUNDS * options.steps * LAYERS :]
            executor.device.close()
            row = modelled(costs, plans, asked, found.median_us(), kernels)
            for part, counts in zip(
                ("cpu", "there", "fetched", "ahead"), zip(*plans, strict=True), strict=True
            ):
                row[f"{part}_experts"] = round(statistics.fmean(counts), 2)
            rows.append(row)
    print("Modelled: no GPU took part.")
    report.table(rows)
    assumed = {"launch_us": LAUNCH_US, "call_us": CALL_US, "eager_us": EAGER_US, "dense_kernels": kernels}
    report.write(
        "gpu_modelled", rows, label="modelled", shape=SHAPE, resident=RESIDENT, hidden=HIDDEN, assumed=assumed
    )


if __name__ == "__main__":
    main()
