"""What the modelled speed over a GPU is made of, worked by hand."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERT = 3 * 2048 * 768 * 18 // 32  # bytes: w4, a two-byte scale for 32 weights
DENSE = (
    2 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 128 * 2048 + 2 * 2048 + 2 * 128) + 2 * (151936 * 2048 + 2048) / 48
)


@pytest.fixture
def modelled(monkeypatch):
    for folder in ("benchmarks/policies", "benchmarks/tools", "tests/gpu"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield import_module("gpu_modelled")
    for name in ("gpu_modelled", "gpu_host_time", "gpu_layers", "layer_seconds", "qwen3_layers", "report"):
        sys.modules.pop(name, None)


def row(modelled, plan, hits, launches=0.0, calls=0.0, host_us=0.0, kernels=0):
    costs = modelled.cost_model("rtx4090-desktop")
    asked = {"launches": launches, "calls": calls, "resident_experts": hits}
    return modelled.modelled(costs, [plan], asked, host_us, kernels), costs.profile


def test_with_all_experts_on_the_cpu_a_layer_is_the_dense_part_the_wait_and_the_cpus_experts(modelled):
    found, profile = row(modelled, (8, 0, 0, 0), 0)
    dense, cpu = DENSE / profile["gpu_bandwidth"], 8 * EXPERT / profile["cpu_bandwidth"]
    assert found["now_tps"] == pytest.approx(1 / (48 * (dense + profile["sync"] + cpu)), rel=4e-3)
    floor = dense + 8 * EXPERT / profile["memory_bandwidth"]
    assert found["floor_tps"] == pytest.approx(1 / (48 * floor), rel=4e-3)


def test_host_driver_and_issue_add_up(modelled):
    found, profile = row(modelled, (8, 0, 0, 0), 0, launches=10, calls=14, host_us=100, kernels=60)
    cpu = 8e6 * EXPERT / profile["cpu_bandwidth"]
    layer = (
        60 * 5.0 + 1e6 * profile["sync"] + 100 + 10 * 1.2 + 4 * 0.5 + cpu
    )  # issuing takes longer than computing
    assert found["now_tps"] == pytest.approx(1e6 / (48 * layer), rel=4e-3)
    dense = 1e6 * DENSE / profile["gpu_bandwidth"]
    layer = dense + 1.2 + 1e6 * profile["sync"] + 30 + 10 * 1.2 + 4 * 0.5 + cpu
    assert found["planned_tps"] == pytest.approx(1e6 / (48 * layer), rel=4e-3)


def test_copies_that_take_longer_than_the_layer_are_the_layer(modelled):
    found, profile = row(modelled, (0, 8, 0, 20), 8)
    link = 20 * (EXPERT / profile["link_bandwidth"] + profile["link_latency"])
    assert found["now_tps"] == found["planned_tps"] == pytest.approx(1 / (48 * link), rel=4e-3)


def test_the_floor_takes_ram_and_the_gpus_memory_side_by_side(modelled):
    found, profile = row(modelled, (5, 3, 0, 0), 3)
    floor = DENSE / profile["gpu_bandwidth"] + 5 * EXPERT / profile["memory_bandwidth"]
    assert found["floor_tps"] == pytest.approx(1 / (48 * floor), rel=4e-3)


def test_a_decoder_layers_kernels_are_counted_but_its_views_are_not(modelled):
    assert 30 <= modelled.dense_kernels() <= 60  # 9 linears and norms, rotations, attention, routing, sums


def test_what_is_asked_of_the_driver_is_counted_a_layer(modelled, tmp_path):
    host = import_module("gpu_host_time")
    driver, gpu = host.idle_gpu(tmp_path)
    costs, foresight = modelled.cost_model("rtx4090-desktop"), modelled.Foresight()
    executor = host.build(gpu, 1.0, costs, foresight)
    host.WARM_UP, host.ROUNDS = 1, 1
    _, asked = host.measure(driver, executor, foresight, 1, 2)
    # All resident: the routing's post, the activations, gate with up, down, the sum; no copy.
    assert asked["launches"] == 5
    assert asked["copies"] == asked["bytes"] == asked["fetched_experts"] == 0
    assert asked["resident_experts"] == 8
    executor.device.close()
