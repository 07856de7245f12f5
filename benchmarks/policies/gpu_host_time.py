"""What the host does for a decode step over a GPU, without one: Qwen3-30B-A3B's shape (48 layers, 128 experts, top-8), w4.

The driver is the tests' stand-in (tests/gpu/fake_cuda.cpp) told to do nothing but count, and to post a drawn routing at once,
with a prediction that is right about seven of a token's eight experts: what is left is the host's own work. The model is whole,
its weights of noise; a step is one native call, and is timed with all that Python does around it but choosing the token. The
CPU's experts, which are computed truly, and the wait for the routing are timed by the native layers and taken out. What is left,
a layer:

- host: all of it
- plan: assignment, residency, prefetching, cache replacement, guards
- python: outside the native call: places of keys and values, rotations, counters

Each setting is run in five rounds, of which the one with the lowest median counts.

The stand-in's own time is in `host`: a lock and a count a driver's call (`call_us`, an event's query through ctypes taken out of
the same loop over nothing). A true driver takes about 1.2 us a launch instead.

    python benchmarks/policies/gpu_host_time.py [--steps N] [--profile NAME]
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[1] / "gpu_check"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "gpu"))

from fake import FakeDriver, FakeGpu

import report
from dali.hardware.profile import load as load_profile
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.llm import LLM
from dali.store.expert_pool import ExpertPool
from layer_seconds import LIMIT_US
from over_gpu import over_gpu
from qwen3_layers import (
    EXPERTS,
    FORMAT,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    SHAPE,
    WARM_UP,
    microseconds,
    qwen3_30b_a3b,
    routing,
)
from random_model import llm_of
from timed_model import HostTimes, run_steps

BATCHES, RESIDENT = (1, 8), (0.25, 0.5)
ROUNDS = 5  # of which the quietest counts: what else runs on the machine only adds
CALLS = {
    "launches": "cuLaunchKernel",
    "graphs": "cuGraphLaunch",
    "copies": "cuMemcpyHtoDAsync_v2",
    "waits": "cuStreamWaitEvent",
    "records": "cuEventRecord",
}


def idle_gpu(folder: Path) -> tuple[FakeDriver, FakeGpu]:
    """A stand-in with memory for all experts, which does nothing."""
    driver = FakeDriver(folder)
    driver.reset(0, total=2**40)
    driver.idle()
    return driver, FakeGpu("cuda", driver)


def noise_model() -> LLM:
    """The model on the CPU, with one record for all experts: copies move nothing, and the CPU's experts are in its caches."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format(FORMAT))
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    return llm_of(qwen3_30b_a3b(), ExpertPool([layout] * LAYERS, [[record] * EXPERTS] * LAYERS))


@contextmanager
def over_idle_gpu(llm: LLM, gpu: FakeGpu, resident: float, profile: str) -> Iterator[None]:
    """The model with a share of each layer's experts resident."""
    with (
        patch("dali.offload.gpu.cubin", lambda *arguments: b"none is read"),
        patch("dali.offload.build.Gpu", lambda device: gpu),
        over_gpu(llm, resident, profile),
    ):
        yield


def measure(driver: FakeDriver, llm: LLM, batch: int, steps: int) -> tuple[HostTimes, dict[str, Any], int]:
    """(The quietest round's host times, what a layer's step asked of the driver and where experts ran, of all rounds, and the
    kernels of a layer's dense part, which its graph was captured with.)"""
    drawn = routing(batch, WARM_UP + steps)
    captured = driver.calls(CALLS["launches"])
    run_drawn(driver, llm, batch, drawn[:1])
    again = driver.calls(CALLS["launches"])
    run_drawn(driver, llm, batch, drawn[:1])
    kernels = round((2 * again - captured - driver.calls(CALLS["launches"])) / LAYERS)
    run_drawn(driver, llm, batch, drawn[:WARM_UP])
    before = counted(driver), llm.telemetry.total()
    rounds = [run_drawn(driver, llm, batch, drawn[WARM_UP:]) for _ in range(ROUNDS)]
    found = min(rounds, key=HostTimes.median_us)
    found.plans = [plan for each in rounds for plan in each.plans]
    after = counted(driver), llm.telemetry.total()
    layers = LAYERS * steps * ROUNDS
    asked = {name: (after[0][name] - value) / layers for name, value in before[0].items()}
    for name in ("cpu", "resident", "fetched", "prefetched"):
        asked[f"{name}_experts"] = (getattr(after[1], name) - getattr(before[1], name)) / layers
    return found, asked, kernels


def run_drawn(driver: FakeDriver, llm: LLM, batch: int, drawn: list[torch.Tensor]) -> HostTimes:
    """Decode a token a sequence for each of the routings `drawn`, [layers, batch, top_k]."""

    def draw(step: int) -> None:
        ids = drawn[step]
        ahead = torch.cat((ids[1:, :, :-1], ids[1:, :, -1:].roll(1, 0)), -1)  # all but the last are right
        last = torch.zeros_like(ids[:1])
        driver.route(ids.view(LAYERS, -1), torch.cat((ahead, last)).view(LAYERS, -1))

    return run_steps(llm, batch, len(drawn), draw)


def counted(driver: FakeDriver) -> dict[str, float]:
    counts = {name: float(driver.calls(symbol)) for name, symbol in CALLS.items()}
    return counts | {"calls": float(driver.calls()), "bytes": float(driver.copied(CALLS["copies"]))}


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
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        driver, gpu = idle_gpu(Path(folder))
        llm = noise_model()
        for batch in BATCHES:
            for resident in RESIDENT:
                with over_idle_gpu(llm, gpu, resident, options.profile):
                    found, asked, kernels = measure(driver, llm, batch, options.steps)
                row: dict[str, Any] = {"batch": batch, "resident": resident}
                row["host_us"], row["host_p90"] = microseconds(found.host)
                row |= {f"{part}_us": microseconds(getattr(found, part))[0] for part in ("plan", "python")}
                row |= {"limit_us": LIMIT_US, "mib": round(asked["bytes"] / 2**20, 2)}
                counts = {name: round(value, 2) for name, value in asked.items() if name != "bytes"}
                rows.append(row | counts | {"kernels": kernels})
        stand_in = call_us(driver)
    report.table(rows)
    profile = load_profile(options.profile)
    about = {"name": profile.name, "label": profile.label}
    steps = options.steps * LAYERS
    report.write("gpu_host_time", rows, shape=SHAPE, layer_steps=steps, profile=about, call_us=stand_in)


if __name__ == "__main__":
    main()
