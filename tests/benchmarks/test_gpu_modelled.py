"""What the modelled speed over a GPU is made of, worked by hand."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dali.kernels import native

ROOT = Path(__file__).parents[2]
EXPERT = 3 * 2048 * 768 * 18 // 32  # bytes: w4, a two-byte scale for 32 weights
DENSE = 40e6  # bytes of a layer's dense part


@pytest.fixture
def modelled(monkeypatch):
    before = set(sys.modules)
    for folder in ("benchmarks/policies", "benchmarks/tools", "benchmarks/gpu_check", "tests/gpu"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield import_module("gpu_modelled")
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def row(modelled, plan, hits, launches=0.0, calls=0.0, host_us=0.0, kernels=0):
    costs = modelled.cost_model("rtx4090-desktop")
    found = modelled.HostTimes(host=[1e-6 * host_us], plans=[plan])
    asked = {"launches": launches, "graphs": 0.0, "calls": calls, "resident_experts": hits}
    return modelled.modelled(costs, found, asked, kernels, DENSE), costs.profile


def test_with_all_experts_on_the_cpu_a_layer_is_the_dense_part_the_wait_and_the_cpus_experts(modelled):
    found, profile = row(modelled, (8, 0, 0, 0), 0)
    dense, cpu = DENSE / profile["gpu_bandwidth"], 8 * EXPERT / profile["cpu_bandwidth"]
    assert found["now_tps"] == pytest.approx(1 / (48 * (dense + profile["sync"] + cpu)), rel=4e-3)
    floor = dense + 8 * EXPERT / profile["memory_bandwidth"]
    assert found["floor_tps"] == pytest.approx(1 / (48 * floor), rel=4e-3)


def test_dense_part_wait_host_and_driver_add_up(modelled):
    found, profile = row(modelled, (8, 0, 0, 0), 0, launches=10, calls=14, host_us=100, kernels=60)
    cpu, dense = (
        1e6 * part for part in (8 * EXPERT / profile["cpu_bandwidth"], DENSE / profile["gpu_bandwidth"])
    )
    layer = dense + 60 * 1.0 + 1e6 * profile["sync"] + 100 + 10 * 1.2 + 4 * 0.5 + cpu
    assert found["now_tps"] == pytest.approx(1e6 / (48 * layer), rel=4e-3)


def test_copies_that_take_longer_than_the_layer_are_the_layer(modelled):
    found, profile = row(modelled, (0, 8, 0, 20), 8)
    link = 20 * (EXPERT / profile["link_bandwidth"] + profile["link_latency"])
    assert found["now_tps"] == pytest.approx(1 / (48 * link), rel=4e-3)


def test_the_floor_takes_ram_and_the_gpus_memory_side_by_side(modelled):
    found, profile = row(modelled, (5, 3, 0, 0), 3)
    floor = DENSE / profile["gpu_bandwidth"] + 5 * EXPERT / profile["memory_bandwidth"]
    assert found["floor_tps"] == pytest.approx(1 / (48 * floor), rel=4e-3)


@pytest.mark.skipif(
    not native.enabled() or native.variant() == "portable", reason="decodes by the CPU's kernels at first"
)
def test_what_is_asked_of_the_driver_is_counted_a_layer(modelled, monkeypatch, tmp_path):
    host, layers = import_module("gpu_host_time"), import_module("qwen3_layers")
    config = layers.qwen3_30b_a3b()
    config.num_hidden_layers, config.vocab_size = 2, 64
    drawn = [ids[:2] for ids in layers.routing(1, 4)]
    values = {"LAYERS": 2, "WARM_UP": 1, "ROUNDS": 1, "qwen3_30b_a3b": lambda: config}
    for name, value in (values | {"routing": lambda batch, steps: drawn[:steps]}).items():
        monkeypatch.setattr(host, name, value)
    driver, gpu = host.idle_gpu(tmp_path)
    with torch.inference_mode():
        llm = host.noise_model()
        with host.over_idle_gpu(llm, gpu, 1.0, "rtx4090-desktop"):
            found, asked, kernels = host.measure(driver, llm, 1, 2)
    # All resident: the dense part's graph; gate with up, down, the sum; and the head's six kernels, over two layers.
    assert asked["graphs"] == 1
    assert asked["launches"] == 3 + 6 / 2
    assert asked["copies"] == 1 / 2  # a step's tables
    assert asked["fetched_experts"] == asked["cpu_experts"] == 0
    assert asked["resident_experts"] == 8
    assert found.plans == [(0, 8, 0, 0)] * 2 * 2
    assert 10 <= kernels <= 16  # norms, linears, heads, attention, router, prediction, post
