"""Decoding in Qwen3-30B-A3B's shape, w4, random weights: the CPU alone, and a GPU with 0 to 100 % of the experts resident.

Over the GPU, routing is drawn (benchmarks/tools/qwen3_layers.py) and replayed, and the prediction is right about seven of eight
experts. On the CPU whole steps are native calls, which routers take part in: there it is the random routers' own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from dali import fused
from dali.errors import DaliError
from dali.hardware.free_memory import available_ram
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.llm import LLM, STEP_TOKENS
from dali.offload.build import MOST_SCRATCH, accelerate, dense_size
from dali.options import LoadOptions
from dali.progress import silent
from device import copy_bandwidth, open_gpu
from qwen3_layers import EXPERTS, LAYERS, Foresight, qwen3_30b_a3b, routing
from random_model import Replay, decode, random_llm
from result import CannotRun, Result

TOKENS, BATCHES, SHARES = 24, (1, 8), (0.0, 0.25, 0.5, 1.0)
FEWER = 12  # layers, where RAM does not hold all
RECORD, DENSE = 2_654_208, 4 * 2**30  # bytes of an expert; of the dense part, and of what it takes beside
LEAST = 0.8  # of the floor


def run(result: Result) -> None:
    open_gpu()
    layers = LAYERS if available_ram() > LAYERS * EXPERTS * RECORD + DENSE else FEWER
    if available_ram() < layers * EXPERTS * RECORD + DENSE:
        needed = (layers * EXPERTS * RECORD + DENSE) / 2**30
        raise CannotRun(f"The experts of {layers} layers take {needed:.0f} GiB of RAM, more than is free.")
    if layers != LAYERS:
        result.note(f"RAM holds no {LAYERS} layers: these are {layers}, speeds not scaled.")
    native.set_threads(torch.get_num_threads())
    config = qwen3_30b_a3b()
    config.num_hidden_layers = layers
    with torch.inference_mode():
        measure(result, random_llm(config), SHARES, TOKENS, copy_bandwidth())


def measure(
    result: Result, llm: LLM, shares: tuple[float, ...], tokens: int, gpu_bandwidth: float
) -> dict[tuple[str, int], float]:
    """Tokens a second by (what, batch)."""
    memory = llm.loaded.pool.records[0][0]
    arena = torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage())[: 2**30]
    ram = max(arena.nbytes / native.read_seconds(arena) for _ in range(4))
    speeds: dict[tuple[str, int], float] = {}
    for share in shares:
        try:
            put_on_gpu(result, llm, share)
        except DaliError as error:
            result.note(f"{share:.0%} resident cannot be had: {error.problem}")
            back_to_cpu(llm)
            continue
        for batch in BATCHES:
            replay(llm, batch, tokens)
            before = llm.telemetry.total()
            seconds = decode(llm, batch, tokens)
            total = llm.telemetry.total()
            speed = speeds[f"cuda {share:.0%}", batch] = batch / statistics.median(seconds)
            counts = {
                name: (getattr(total, name) - getattr(before, name)) / max(total.steps - before.steps, 1)
                for name in ("cpu", "resident", "fetched", "prefetched")
            }
            floor = batch / floor_seconds(llm, counts, ram, gpu_bandwidth)
            result.row(what=f"cuda {share:.0%}", batch=batch, tps=speed, of_floor=speed / floor, **counts)
            if share == 0.25 and batch == 1:
                result.limit("cuda 25 % of the floor", speed / floor, least=LEAST)
        back_to_cpu(llm)
    llm.engine.decoder = fused.fuse(llm.model, get_format("w8"))
    for batch in BATCHES:
        speeds["cpu", batch] = batch / statistics.median(decode(llm, batch, tokens))
        result.row(what="cpu", batch=batch, tps=speeds["cpu", batch])
    if ("cuda 25%", 1) in speeds:
        result.limit("cuda 25 % over cpu", speeds["cuda 25%", 1] / speeds["cpu", 1], least=1.0)
    return speeds


def put_on_gpu(result: Result, llm: LLM, share: float) -> None:
    pool, record = llm.loaded.pool, llm.loaded.layout.record_bytes
    layers, experts = pool.layers, pool.experts
    slots = 0 if share == 0 else layers * int(experts * share) + (0 if share == 1 else MOST_SCRATCH)
    profile = None if result.profile is None else str(result.profile)
    options = LoadOptions(device="cuda", vram=slots * record, profile=profile)
    with patch("dali.offload.build.load_predictor", lambda *arguments: Moving("cpu", layers)):
        accelerated = accelerate(llm.loaded, llm.engine, options, silent, lambda message: None)
    llm.accelerate(accelerated)


class Moving(Foresight):
    """A foresight that goes where the model goes."""

    def __init__(self, place: torch.device | str, layers: int) -> None:
        super().__init__(place, layers)
        self._layers = layers

    def to(self, place: torch.device) -> Moving:
        return Moving(place, self._layers)


def replay(llm: LLM, batch: int, tokens: int) -> None:
    """Let the next steps be routed as drawn, and the prediction know it."""
    accelerated, pool = llm.accelerated, llm.loaded.pool
    assert accelerated is not None
    drawn = [ids[: pool.layers] for ids in routing(batch, tokens + 1)]
    place = llm.model.device
    foresight: Any = accelerated.executor.prefetcher._predictor
    steps = iter([ids.to(place) for ids in drawn])

    def begin(layer: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden: Any, ids: Any, weights: Any) -> Any:
            if foresight is not None:
                foresight.routing = next(steps, foresight.routing)
            return layer(hidden, ids, weights)

        return run

    layers = [
        Replay(layer, [ids[index].to(place) for ids in drawn])
        for index, layer in enumerate(accelerated.executor.layer(i) for i in range(pool.layers))
    ]
    for index, module in enumerate(seam.experts_modules(llm.model).values()):
        seam.set_dali_layer(module, begin(layers[index]) if index == 0 else layers[index])


def back_to_cpu(llm: LLM) -> None:
    llm.engine.forget()
    if llm.executor is not None:
        llm.executor.device.close()
        llm.accelerated = None
    llm.model.to("cpu")
    for index, module in enumerate(seam.experts_modules(llm.model).values()):
        seam.set_dali_layer(module, MoELayer(index, llm.loaded.pool, llm.telemetry))
    llm.engine.follow(time.perf_counter, None, False, STEP_TOKENS)


def floor_seconds(llm: LLM, counts: dict[str, float], ram: float, gpu: float) -> float:
    """What no runtime could beat with these residents: the dense part read once, then RAM and the GPU's memory side by side."""
    expert, layers = llm.layout.weight_bytes, llm.loaded.pool.layers
    absent = counts["cpu"] + counts["fetched"] + counts["prefetched"]
    dense = dense_size(llm.model)[0] / gpu
    return dense + layers * max(absent * expert / ram, counts["resident"] * expert / gpu)
