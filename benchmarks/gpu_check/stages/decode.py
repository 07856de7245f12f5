"""Decoding in Qwen3-30B-A3B's shape, random weights: w4 on the CPU alone, and over a GPU with 0 to 100 % of the experts resident;
transformers' own bfloat16 model on the GPU; and what the profile that was just measured says of it.

Over the GPU, routing is drawn (benchmarks/tools/qwen3_layers.py) and replayed, and the prediction is right about seven of eight
experts. On the CPU whole steps are native calls, which routers take part in: there it is the random routers' own.
What is modelled is a layer's experts, copies, waits and dense part; what the host does for a layer and the dense part alone are
measured here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from bf16_model import fitting_layers, step_seconds
from dali import fused
from dali.errors import DaliError
from dali.hardware.cost import CostModel
from dali.hardware.free_memory import available_ram
from dali.hooks import seam
from dali.hooks.moe_layer import MoELayer
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.llm import LLM, STEP_TOKENS
from dali.offload.build import MOST_SCRATCH, accelerate, dense_size
from dali.offload.gpu import layers_maker
from dali.options import LoadOptions
from dali.progress import silent
from device import copy_bandwidth, note_stand_in, open_gpu
from gpu_layers import TimedLayers
from layer_seconds import LAUNCH_US, layer_seconds
from qwen3_layers import EXPERTS, LAYERS, Foresight, cost_model, qwen3_30b_a3b, routing
from random_model import Replay, decode, random_llm
from result import CannotRun, Result

TOKENS, BATCHES, SHARES = 24, (1, 8), (0.0, 0.25, 0.5, 1.0)
FEWER = 12  # layers, where RAM does not hold all
RECORD, DENSE = 2_654_208, 4 * 2**30  # bytes of an expert; of the dense part, and of what it takes beside
LEAST, MOST_ERROR = 0.8, 0.15  # of the floor; of what is modelled
TRANSFORMERS = "transformers, bf16, grouped_mm"


def run(result: Result) -> None:
    gpu = open_gpu()
    note_stand_in(result, gpu)
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
        theirs = transformers(result, config, gpu, TOKENS)  # first: it wants memory that nothing else keeps
        speeds = measure(result, random_llm(config), SHARES, TOKENS, copy_bandwidth())
    compare(result, theirs | speeds)


def transformers(result: Result, config: Any, gpu: Any, tokens: int) -> dict[tuple[str, int], float]:
    """Tokens a second of transformers' model, of as many layers as fit, scaled to ours."""
    layers = fitting_layers(config, gpu.free_bytes())
    if layers < 2:
        result.note("The GPU's memory does not hold two of transformers' layers in bfloat16.")
        return {}
    try:
        seconds = step_seconds(config, layers, gpu.place, BATCHES, tokens)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        result.note(f"transformers' model cannot run here: {' '.join(str(error).split())[:200]}")
        return {}
    speeds = {(TRANSFORMERS, batch): batch / one for batch, one in zip(BATCHES, seconds, strict=True)}
    for (what, batch), speed in speeds.items():
        result.row(what=what, batch=batch, tps=speed, layers=layers, scaled_to=config.num_hidden_layers)
    return speeds


def compare(result: Result, speeds: dict[tuple[str, int], float]) -> None:
    """A quarter resident against all that does without."""
    for other in ("cpu", TRANSFORMERS):
        if ("cuda 25%", 1) in speeds and (other, 1) in speeds:
            result.limit(f"cuda 25 % over {other}", speeds["cuda 25%", 1] / speeds[other, 1], least=1.0)


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
        costs = None if result.profile is None or share != 0.25 else cost_model(str(result.profile))
        for batch in BATCHES:
            layers, before = replay(llm, batch, tokens), llm.telemetry.total()
            predicted = llm.telemetry.predict_seconds
            seconds = decode(llm, batch, tokens)
            predicted = llm.telemetry.predict_seconds - predicted
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
                if costs is not None:
                    host = host_seconds(llm, layers, predicted)
                    against_model(result, llm, costs, counts["resident"], host, seconds)
        back_to_cpu(llm)
    llm.engine.decoder = fused.fuse(llm.model, get_format("w8"))
    for batch in BATCHES:
        speeds["cpu", batch] = batch / statistics.median(decode(llm, batch, tokens))
        result.row(what="cpu", batch=batch, tps=speeds["cpu", batch])
    return speeds


def against_model(
    result: Result, llm: LLM, costs: CostModel, hits: float, host: float, seconds: list[float]
) -> None:
    """What was just decoded, a token a step, against what the profile says of the same. `seconds`: of each step; `host`: of the
    host's work for a layer."""
    pool = llm.loaded.pool
    for module in seam.experts_modules(llm.model).values():
        seam.set_dali_layer(module, lambda hidden, ids, weights: hidden)
    dense = statistics.median(decode(llm, 1, len(seconds))) / pool.layers
    nbytes, begun = dense_size(llm.model)[0] / pool.layers, 2e-6 * LAUNCH_US  # what posts the routing
    plans = native_layers(llm).plans
    expected = pool.layers * layer_seconds(costs, plans, hits, nbytes, dense, host, begun).now
    measured = statistics.median(seconds)
    parts = {"dense_us": 1e6 * dense, "host_us": 1e6 * host}
    result.row(what="cuda 25% and its model", **parts, measured_ms=1e3 * measured, modelled_ms=1e3 * expected)
    result.limit("cuda 25 % against its model, error", abs(measured / expected - 1), most=MOST_ERROR)


def host_seconds(llm: LLM, layers: list[Replay], predicted: float) -> float:
    """Of the host, for a layer's step, but the waiting, the CPU's experts and the prediction."""
    native = native_layers(llm)
    took = sum(layer.seconds for layer in layers)
    return (took - native.seconds["routing"] - native.seconds["cpu"] - predicted) / len(native.plans)


def native_layers(llm: LLM) -> TimedLayers:
    assert llm.executor is not None
    layers = llm.executor.device.layers
    assert isinstance(layers, TimedLayers)
    return layers


def put_on_gpu(result: Result, llm: LLM, share: float) -> None:
    pool, record = llm.loaded.pool, llm.loaded.layout.record_bytes
    layers, experts = pool.layers, pool.experts
    slots = 0 if share == 0 else layers * int(experts * share) + (0 if share == 1 else MOST_SCRATCH)
    profile = None if result.profile is None else str(result.profile)
    options = LoadOptions(device="cuda", vram=slots * record, profile=profile)
    with (
        patch("dali.offload.build.load_predictor", lambda *arguments: Moving("cpu", layers)),
        patch("dali.offload.gpu.layers_maker", timed_maker),
    ):
        accelerated = accelerate(llm.loaded, llm.engine, options, silent, lambda message: None)
    llm.accelerate(accelerated)


def timed_maker(gpu: Any, loaded: Any) -> Callable[[int], TimedLayers]:
    make = layers_maker(gpu, loaded)
    return lambda slots: TimedLayers(make(slots))


class Moving(Foresight):
    """A foresight that goes where the model goes."""

    def __init__(self, place: torch.device | str, layers: int) -> None:
        super().__init__(place, layers)
        self._layers = layers

    def to(self, place: torch.device) -> Moving:
        return Moving(place, self._layers)


def replay(llm: LLM, batch: int, tokens: int) -> list[Replay]:
    """Let the next steps be routed as drawn, and the prediction know it; the layers that do."""
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
    return layers


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
