from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from dali.devices import SimDevice
from dali.telemetry import DiskCounters, LayerCounters, Telemetry
from runtime.tiny_runtime import EXPERTS, LAYERS, Setting, run, step_inputs, tiny_executor, tiny_model


def test_rates_of_nothing_are_zero() -> None:
    assert (LayerCounters().hit_rate, LayerCounters().overlap) == (0.0, 0.0)


def test_a_hit_is_an_expert_found_on_the_accelerator_or_on_its_way() -> None:
    counters = LayerCounters(resident=3, prefetched=1, fetched=2, cpu=4)
    assert (counters.lookups, counters.hit_rate) == (10, 0.4)


def test_overlap_counts_busy_lanes() -> None:
    counters = LayerCounters(seconds=2.0, accelerator_seconds=2.0, cpu_seconds=1.0, link_seconds=0.5)
    assert counters.overlap == 1.75


def test_stats_are_plain_data_and_layers_add_up() -> None:
    telemetry = Telemetry(modelled=True)
    telemetry.layer(1).cpu += 2
    telemetry.layer(0).cpu += 3
    telemetry.layer(0).seconds += 0.5
    stats = json.loads(json.dumps(telemetry.as_dict()))
    assert [layer["cpu"] for layer in stats["layers"]] == [3, 2]
    assert (stats["total"]["cpu"], stats["total"]["seconds"], stats["modelled"]) == (5, 0.5, True)


def test_the_workload_stays_where_it_is_and_can_begin_anew() -> None:
    telemetry = Telemetry()
    workload = telemetry.count_experts(2, 3)
    workload[1] += [0, 1, 2]
    assert telemetry.count_experts(2, 3) is workload
    assert telemetry.as_dict()["workload"] == [[0, 0, 0], [0, 1, 2]]
    telemetry.clear()
    assert telemetry.workload is workload
    assert not workload.any()


@torch.inference_mode()
def test_every_expert_s_tokens_are_counted_wherever_it_is_computed() -> None:
    model = tiny_model()
    executor = tiny_executor(Setting(batch=8), model)
    counted = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)

    def counting(layer: int) -> Any:
        def call(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            counted[layer] += torch.bincount(ids.flatten(), minlength=EXPERTS)
            return executor.run(layer, hidden, ids, weights)

        return call

    for step in range(3):
        model.forward([counting(layer) for layer in range(LAYERS)], step_inputs(8, step))
    assert executor._telemetry.workload.tolist() == counted.tolist()
    assert counted.all(dim=0).any()


@pytest.mark.parametrize("assign", ["two_lane", "gpu", "cpu"])
def test_no_lane_is_busy_for_longer_than_its_layers_take(assign: str) -> None:
    """Attention and what else goes on between the layers is no part of it."""
    executor = tiny_executor(Setting(assign, "none", "static", batch=8), tiny_model())
    run(executor, tiny_model(), 8)
    for layer in executor._telemetry.layers:
        for seconds in (layer.accelerator_seconds, layer.cpu_seconds, layer.link_seconds):
            assert seconds <= layer.seconds * (1 + 1e-9)
        assert layer.overlap > 0


def test_modelled_figures_depend_neither_on_the_schedule_nor_on_this_machine() -> None:
    setting, model = Setting(batch=8, profile="laptop-8gb"), tiny_model()
    found = []
    for seed in range(4):
        device = SimDevice(setting.slots * model.layout.record_bytes, seed=seed)
        executor = tiny_executor(replace(setting), model, device)
        run(executor, model, 8)
        found.append((device.now(), executor._telemetry.layers))
    assert len(found[0][1]) == LAYERS
    assert all(one == found[0] for one in found)


def test_what_is_told_of_the_disk_is_since_the_telemetry_began():
    counted = DiskCounters((3, 4), (1, 2), 5, 500, 400, 2, 1, 1, 0.5, 3.0, 1.5, 0, True)
    telemetry, now = Telemetry(), [counted]
    assert telemetry.disk is None
    assert telemetry.as_dict()["disk"] is None
    telemetry.follow_disk(lambda: now[0])
    now[0] = DiskCounters((6, 8), (1, 5), 9, 1100, 900, 2, 2, 3, 0.75, 4.0, 2.0, 2, False)
    disk = telemetry.disk
    assert disk == DiskCounters((3, 4), (0, 3), 4, 600, 500, 0, 1, 2, 0.25, 1.0, 0.5, 2, False)
    assert (disk.hit_rate, disk.amplification, disk.queue_depth) == (0.7, 1.2, 2.0)
    told = telemetry.as_dict()["disk"]
    assert (told["hits"], told["misses"], told["hit_rate"]) == (7, 3, 0.7)
    telemetry.clear()
    assert telemetry.disk.reads == telemetry.disk.amplification == telemetry.disk.queue_depth == 0
