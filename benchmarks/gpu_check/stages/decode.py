"""Decoding in Qwen3-30B-A3B's shape, random weights: w4 on the CPU alone, and over a GPU with 0 to 100 % of the experts resident;
transformers' own bfloat16 model on the GPU; and what the profile that was just measured says of it.

Both sides run whole steps by dali's kernels, one native call each, routed by the model's own random routers for drawn tokens;
over the GPU the next layer's router on this layer's input predicts. Their greedy tokens must be the same. What is modelled is a
layer's experts, copies, waits and dense part; what the host does for a layer and the dense part alone are measured here.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from bf16_model import fitting_layers, step_seconds
from dali.errors import DaliError
from dali.hardware.cost import CostModel
from dali.hardware.free_memory import available_ram
from dali.kernels import native
from dali.llm import LLM
from dali.telemetry import LayerCounters
from device import copy_bandwidth, note_stand_in, open_gpu
from layer_seconds import dense_bytes, layer_seconds
from over_gpu import over_gpu
from qwen3_layers import EXPERTS, LAYERS, cost_model, qwen3_30b_a3b
from random_model import decode, greedy, random_llm
from result import CannotRun, Result
from timed_model import dense_seconds, run_steps

TOKENS, BATCHES, SHARES = 24, (1, 8), (0.0, 0.25, 0.5, 1.0)
PROMPTS, GREEDY = (1, 200), 16  # tokens; those of greedy answers
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
    for batch in BATCHES:
        speeds["cpu", batch] = batch / statistics.median(decode(llm, batch, tokens))
        result.row(what="cpu", batch=batch, tps=speeds["cpu", batch])
    expected = [greedy(llm, prompt, GREEDY) for prompt in PROMPTS]
    profile, compared, differ = None if result.profile is None else str(result.profile), 0, 0
    for share in shares:
        try:
            with over_gpu(llm, share, profile):
                speeds |= decode_all(result, llm, share, tokens, ram, gpu_bandwidth)
                for prompt, wanted in zip(PROMPTS, expected, strict=True):
                    found = greedy(llm, prompt, GREEDY)
                    compared += len(wanted)
                    differ += sum(one != other for one, other in zip(found, wanted, strict=True))
        except DaliError as error:
            result.note(f"{share:.0%} resident cannot be had: {error.problem}")
    result.row(what="greedy tokens", compared=compared, differ=differ)
    result.limit("greedy tokens over the GPU that are not the CPU's", differ, most=0)
    return speeds


def decode_all(
    result: Result, llm: LLM, share: float, tokens: int, ram: float, gpu_bandwidth: float
) -> dict[tuple[str, int], float]:
    """Tokens a second over the GPU. ram, gpu_bandwidth: bytes a second."""
    speeds, what = dict[tuple[str, int], float](), f"cuda {share:.0%}"
    for batch in BATCHES:
        before = llm.telemetry.total()
        seconds = decode(llm, batch, tokens)
        done = since(before, llm.telemetry.total())
        counts = {
            name: done[name] / max(done["steps"], 1) for name in ("cpu", "resident", "fetched", "prefetched")
        }
        speeds[what, batch] = batch / statistics.median(seconds)
        of_floor = speeds[what, batch] * floor_seconds(llm, counts, ram, gpu_bandwidth) / batch
        wanted = done["prefetch_used"] + done["prefetch_late"]
        ahead = wanted + done["prefetch_wasted"]
        right = round(wanted / ahead, 3) if ahead else "none copied"
        result.row(
            what=what, batch=batch, tps=speeds[what, batch], of_floor=of_floor, **counts, prediction=right
        )
        if share == 0.25 and batch == 1:
            result.limit("cuda 25 % of the floor", of_floor, least=LEAST)
            if result.profile is not None:
                costs = cost_model(str(result.profile))
                against_model(result, llm, costs, counts["resident"], statistics.median(seconds), tokens)
    return speeds


def since(before: LayerCounters, after: LayerCounters) -> dict[str, float]:
    return {name: getattr(after, name) - value for name, value in vars(before).items()}


def against_model(
    result: Result, llm: LLM, costs: CostModel, hits: float, measured: float, tokens: int
) -> None:
    """`measured`, seconds of a step of one token, against what the profile says of such steps."""
    layers = llm.loaded.pool.layers
    found = run_steps(llm, 1, tokens)
    dense = dense_seconds(llm, 1, tokens, torch.cuda.synchronize) / layers
    host, nbytes = 1e-6 * found.median_us(), dense_bytes(llm.model) / layers
    expected = layers * layer_seconds(costs, found.plans, hits, nbytes, dense, host, 0.0).now
    parts = {"dense_us": 1e6 * dense, "host_us": 1e6 * host, "waited_us": found.median_us("waited")}
    result.row(what="cuda 25% and its model", **parts, measured_ms=1e3 * measured, modelled_ms=1e3 * expected)
    result.limit("cuda 25 % against its model, error", abs(measured / expected - 1), most=MOST_ERROR)


def floor_seconds(llm: LLM, counts: dict[str, float], ram: float, gpu: float) -> float:
    """What no runtime could beat with these residents: the dense part read once, then RAM and the GPU's memory side by side."""
    expert, layers = llm.layout.weight_bytes, llm.loaded.pool.layers
    absent = counts["cpu"] + counts["fetched"] + counts["prefetched"]
    dense = dense_bytes(llm.model) / gpu
    return dense + layers * max(absent * expert / ram, counts["resident"] * expert / gpu)
