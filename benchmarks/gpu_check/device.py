"""The GPU for a stage, and times that it says itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from result import CannotRun, Result

HBM = 1.9e12  # bytes a second, read and written: no card with GDDR has so many


def open_gpu() -> Any:
    """dali's device (dali.devices.cuda.Gpu)."""
    from dali.devices.cuda import Gpu
    from dali.kernels import native

    if not native.enabled():
        raise CannotRun("dali's library is not built for this Python; the stage `build` does it.")
    torch.zeros(1, device="cuda")  # torch's context, which is dali's too
    return Gpu("cuda")


def note_stand_in(result: Result, gpu: Any) -> None:
    """Say so where torch's part runs on the CPU, as over a stand-in for the driver."""
    if gpu.place.type != "cuda":
        result.note("There is no GPU under this: a stand-in ran, and no figure here was measured on silicon.")


def builder(gpu: Any) -> Callable[[str, Mapping[str, int]], bytes]:
    """What OneLayer builds kernels with: NVRTC, once each."""
    from dali.kernels.gpu.compiler import cubin
    from dali.store.cache import cache_root

    return lambda name, macros: cubin(name, macros, gpu.sm, cache_root() / "cubins")


def gpu_seconds(
    queue: Callable[[], Any],
    prepare: Callable[[], Any] = lambda: None,
    repeat: int = 5,
    ahead: int = 2_000_000,
) -> float:
    """Seconds the GPU takes for what `queue` queues on torch's stream, each time after `prepare`; median. The GPU is kept waiting
    for `ahead` cycles first, so that what the host takes to queue it all does not show."""
    found = []
    for _ in range(repeat + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        prepare()
        torch.cuda.synchronize()
        torch.cuda._sleep(ahead)
        start.record()
        queue()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(found[1:])


def copy_bandwidth(nbytes: int = 2**28) -> float:
    """Bytes a second of a copy within the GPU's memory, those read and those written."""
    source = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * nbytes * 10 / gpu_seconds(lambda: [target.copy_(source) for _ in range(10)])
