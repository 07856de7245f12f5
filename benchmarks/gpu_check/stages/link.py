"""Copies between host and GPU: memory page-locked by torch, registered by dali, and pageable; both ways; 4 KiB to 64 MiB."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dali.compiled import library
from dali.hardware.free_memory import available_ram
from dali.store.arena import Arena
from device import gpu_seconds, open_gpu
from result import Result
from stages.env import pcie_bandwidth

SIZES = tuple(2**power for power in range(12, 27, 2))
LEAST = 0.8  # of PCI Express
REGISTERED = 2**34  # bytes that are page-locked in one piece, as a model's experts are
RECORD = 2_654_208  # bytes: an expert of Qwen3-30B-A3B in w4


def run(result: Result) -> None:
    gpu = open_gpu()
    largest = 4 * max(SIZES)
    arena = Arena(1, largest)
    held = library.gpu_register(gpu.native, arena[0].data_ptr(), largest)
    hosts = {
        "page-locked": torch.empty(largest, dtype=torch.uint8).pin_memory(),
        "registered": arena[0],
        "pageable": torch.ones(largest, dtype=torch.uint8),
    }
    device = torch.empty(largest, dtype=torch.uint8, device="cuda")
    best = {"up": 0.0, "down": 0.0}
    for name, host in hosts.items():
        for size in SIZES:
            speeds = {way: size / seconds(host, device, size, way == "up") for way in best}
            if name == "registered":
                best = {way: max(best[way], speed) for way, speed in speeds.items()}
            result.row(
                memory=name, kib=size // 1024, up_gbs=speeds["up"] / 1e9, down_gbs=speeds["down"] / 1e9
            )
    small, record = (seconds(arena[0], device, size, True) for size in (SIZES[0], RECORD))
    result.figure("link_latency", small, "a copy of 4 KiB from registered memory, queued behind others")
    result.figure(
        "link_bandwidth", RECORD / max(record - small, 1e-9), "an expert's copy from registered memory"
    )
    wire = pcie_bandwidth()
    if wire is None:
        result.note("The driver does not say what the link should reach: its share is not judged.")
    for way, speed in best.items() if wire else ():
        result.limit(f"share of PCI Express, {way}", speed / wire, least=LEAST)
    del held
    register(result, gpu)


def seconds(host: Tensor, device: Tensor, size: int, up: bool) -> float:
    """Of one copy among many of this size, each from another place."""
    count = max(min(len(host) // size, 256), 4)
    places = [i % (len(host) // size) * size for i in range(count)]

    def queue() -> None:
        for at in places:
            there, here = device[at : at + size], host[at : at + size]
            (there if up else here).copy_(here if up else there, non_blocking=True)

    return gpu_seconds(queue, repeat=3, ahead=20_000_000) / count


def register(result: Result, gpu: object) -> None:
    """What page-locking a model's experts takes."""
    nbytes = min(REGISTERED, available_ram() // 2) // 2**20 * 2**20
    arena = Arena(1, nbytes)
    started = time.perf_counter()
    arena[0][::4096] = 1
    touched = time.perf_counter()
    held = library.gpu_register(gpu.native, arena[0].data_ptr(), nbytes)  # type: ignore[attr-defined]
    locked = time.perf_counter()
    del held
    result.row(registered_gib=nbytes / 2**30, pages_s=touched - started, register_s=locked - touched)
