"""Modelled decoding speed over a GPU: Qwen3-30B-A3B as w4, batch 1, a quarter of the experts resident. No GPU takes part.

What the runtime asks of the driver is counted on the tests' stand-in (gpu_host_time.py): each layer step's experts on the CPU, on
the GPU, the copies, the kernels of its dense part. What that takes is computed from a published hardware profile, so every time
here is modelled. A layer takes

    the dense part on the GPU                         bytes / bandwidth + kernels x KERNEL_US
    + the wait for the routing                        the profile's sync
    + the host's work                                 measured on the machine that runs this, gpu_host_time.py
    + the driver's calls                              launches x LAUNCH_US, other calls x CALL_US
    + max(CPU's experts, GPU's experts, copies they wait for, both's bytes out of RAM / its bandwidth)

and no less than all its copies take on the link, and all its bytes out of RAM, those for later layers included. The head counts
as the layers' dense part. The floor is what no runtime could beat with these residents: the dense part's bytes over the GPU's
bandwidth, then the larger of the residents' bytes over the GPU's bandwidth and the others' over the RAM's, which CPU and link
share.

Plans go by the clock of the machine that runs this, where the stand-in's copies are over at once; so this is an estimate of the
sum, not of each part.

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

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.hardware.cost import CostModel
from gpu_host_time import ROUNDS, idle_gpu, measure, noise_model, over_idle_gpu
from layer_seconds import LAUNCH_US, dense_bytes, layer_seconds
from qwen3_layers import HIDDEN, LAYERS, SHAPE, cost_model
from timed_model import HostTimes

PROFILES = ("rtx4090-desktop", "rtx3060-desktop")
RESIDENT = 0.25
CALL_US = 0.5  # a copy, a wait, a record; an assumption, to be measured, as layer_seconds.LAUNCH_US is
KERNEL_US = 1.0  # from the end of a graph's kernel to the start of the next: likewise
TARGET = 80  # percent of the floor


def modelled(
    costs: CostModel, found: HostTimes, asked: dict[str, Any], kernels: float, nbytes: float
) -> dict[str, Any]:
    """One profile's row; `kernels` and `nbytes`: of a layer's dense part."""
    hits, host = asked["resident_experts"], 1e-6 * found.median_us()
    dense = nbytes / costs.profile["gpu_bandwidth"] + 1e-6 * KERNEL_US * kernels
    launched = asked["launches"] + asked["graphs"]
    driver = 1e-6 * (LAUNCH_US * launched + CALL_US * (asked["calls"] - launched))
    layer = layer_seconds(costs, found.plans, hits, nbytes, dense, host, driver)
    row: dict[str, Any] = {"profile": costs.profile.name}
    for name, seconds in (("floor", layer.floor), ("now", layer.now)):
        row[f"{name}_tps"] = round(1 / (LAYERS * seconds), 1)
    row |= {"percent": round(100 * layer.floor / layer.now, 1), "target": TARGET, "hits": round(hits, 2)}
    parts = {"dense": dense, "wait": costs.sync, "host": host, "driver": driver}
    parts |= {"experts": layer.experts, "copies": layer.copies}
    return row | {f"{name}_us": round(1e6 * seconds, 1) for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=45, help="decode steps (default 45: 2,160 layer steps)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        driver, gpu = idle_gpu(Path(folder))
        llm = noise_model()
        nbytes = dense_bytes(llm.model) / LAYERS
        for name in PROFILES:
            with over_idle_gpu(llm, gpu, RESIDENT, name):
                found, asked, kernels = measure(driver, llm, 1, options.steps)
            row = modelled(cost_model(name), found, asked, kernels, nbytes)
            experts = zip(("cpu", "there", "fetched", "ahead"), zip(*found.plans, strict=True), strict=True)
            row |= {f"{part}_experts": round(statistics.fmean(counts), 2) for part, counts in experts}
            rows.append(row | {"kernels": kernels, "dense_mib": round(nbytes / 2**20, 1)})
    print("Modelled: no GPU took part.")
    report.table(rows)
    assumed = {"launch_us": LAUNCH_US, "call_us": CALL_US, "kernel_us": KERNEL_US}
    about = {"shape": SHAPE, "resident": RESIDENT, "hidden": HIDDEN, "rounds": ROUNDS, "assumed": assumed}
    report.write("gpu_modelled", rows, label="modelled", **about)


if __name__ == "__main__":
    main()
