"""Copies, the CPU's experts and the GPU's: each alone, in pairs, and all at once. What runs at once should take as long as the
longest of it alone. A timeline of all at once is written beside the report."""

from __future__ import annotations

import functools
import itertools
import statistics
import time

import torch
from one_layer import OneLayer

from dali.compiled import library
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format
from dali.store.arena import Arena
from device import builder, note_stand_in, open_gpu
from kernels.packed import random_records
from qwen3_layers import HIDDEN, INTERMEDIATE
from result import Result
from timeline import Timeline, queue_at

RECORDS, TOP_K, TOKENS = 256, 64, 1  # 650 MB: no cache of a CPU's holds them
TARGET = 4e-3  # seconds that each lane is to take alone
MOST = 1.15  # of the longest
UNITS = {"copies": 1, "cpu": 1, "gpu": 32}  # experts that are asked for at once
PIECES, TRACE = 8, "timeline.json"


def run(result: Result) -> None:
    gpu = open_gpu()
    note_stand_in(result, gpu)
    layer, held = make_layer(gpu)
    amounts = dict.fromkeys(UNITS, 8)
    for kind, most in {
        "copies": RECORDS // 2,
        "cpu": TOP_K // 2,
        "gpu": 512,
    }.items():  # as much as takes the target
        found = measure(layer, {kind: amounts[kind]})
        amounts[kind] = max(1, min(most, round(amounts[kind] * TARGET / found)))
    alone = {kind: measure(layer, {kind: amounts[kind]}) for kind in UNITS}
    nbytes, together = layer.layout.record_bytes, 0.0
    for count in (1, 2, 3):
        for kinds in itertools.combinations(UNITS, count):
            together = measure(layer, {kind: amounts[kind] for kind in kinds})
            ratio = together / max(alone[kind] for kind in kinds)
            experts = sum(UNITS[kind] * amounts[kind] for kind in kinds)
            row = {"at_once": " + ".join(kinds), "experts": experts, "ms": 1e3 * together}
            result.row(**row, of_longest=ratio, gbs=experts * nbytes / together / 1e9)
            if kinds == ("copies", "cpu"):
                speed = amounts["copies"] * nbytes / max(together, alone["copies"])
                result.figure("link_contended", speed, "experts' copies while the CPU computes others")
    result.limit("all at once over the longest alone", together / max(alone.values()), most=MOST)
    if result.folder is not None:
        trace(layer, amounts).write(result.folder / TRACE)
        result.note(f"{TRACE}, beside this report, shows all three at once: open it in ui.perfetto.dev.")
    figures(result, layer, amounts["cpu"], alone["cpu"])
    del held


def make_layer(gpu: object) -> tuple[OneLayer, object]:
    """A layer whose records are page-locked, and what keeps them so."""
    layout = ExpertLayout(ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu")), get_format("w4"))
    few, arena = random_records(layout, 8), Arena(RECORDS, layout.record_bytes)
    for index in range(RECORDS):
        arena[index].copy_(few[index % len(few)])
    records = arena[0].as_strided((RECORDS, layout.record_bytes), (layout.record_bytes, 1))
    held = library.gpu_register(gpu.native, records.data_ptr(), records.nbytes)  # type: ignore[attr-defined]
    return OneLayer(gpu, builder(gpu), layout, records, TOP_K, most_tokens=TOKENS), held  # type: ignore[arg-type]


def measure(layer: OneLayer, amounts: dict[str, int], repeat: int = 7) -> float:
    """Seconds until everything is over; median. The CPU's experts change from time to time, so that no cache holds them."""
    place = layer.gpu.place
    x = torch.randn(TOKENS, HIDDEN, device=place).to(torch.bfloat16)
    weights, out = torch.full((TOKENS, TOP_K), 1 / TOP_K, device=place), torch.empty_like(x)
    found = []
    for turn in range(repeat + 1):
        first = turn % (RECORDS // TOP_K) * TOP_K
        ids = torch.arange(first, first + TOP_K, device=place).repeat(TOKENS, 1)
        layer.begin(x, ids, weights)
        torch.cuda.synchronize()
        cpu = list(range(first, first + amounts.get("cpu", 0)))
        unit = UNITS["gpu"]
        gpu = list(range(first + TOP_K - unit, first + TOP_K))
        starts = itertools.islice(itertools.cycle(range(0, RECORDS // 2, unit)), amounts.get("gpu", 0))
        launches = [(gpu, list(range(start, start + unit)), False) for start in starts]
        fetches = [(0, RECORDS - 1 - i, RECORDS - 1 - i) for i in range(amounts.get("copies", 0))]
        landed = layer.layers.landed() + len(fetches)
        started = time.perf_counter()
        layer.layers.execute(cpu, launches, fetches, out.data_ptr())
        while layer.layers.landed() < landed:
            pass
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def trace(layer: OneLayer, amounts: dict[str, int]) -> Timeline:
    """All three at once, in pieces. The CPU's experts are computed once all is queued, as in a step; nothing waits for them."""
    place = layer.gpu.place
    x, ids = torch.randn(TOKENS, HIDDEN).to(torch.bfloat16), torch.arange(TOP_K).repeat(TOKENS, 1)
    weights = torch.full((TOKENS, TOP_K), 1 / TOP_K)
    there = [part.to(place) for part in (x, ids, weights)]
    out = torch.empty_like(there[0])
    layer.begin(*there)
    torch.cuda.synchronize()
    timeline, copies = Timeline(), queue_at(layer.layers.copy_stream)
    timeline.mark("copies", "", copies)
    timeline.mark("the GPU's experts", "")
    unit = UNITS["gpu"]
    gpu, halves = list(range(TOP_K - unit, TOP_K)), RECORDS // 2 // unit
    fetched = torch.arange(RECORDS // 2, RECORDS // 2 + amounts["copies"]).tensor_split(PIECES)
    for launched, part in zip(torch.arange(amounts["gpu"]).tensor_split(PIECES), fetched, strict=True):
        starts = [int(number) % halves * unit for number in launched]
        launches = [(gpu, list(range(start, start + unit)), False) for start in starts]
        fetches = [(0, record, record) for record in part.tolist()]
        layer.layers.execute([], launches, fetches, out.data_ptr())
        timeline.mark("copies", f"{len(fetches)} experts", copies)
        timeline.mark("the GPU's experts", f"{unit * len(launches)} experts")
    for part in torch.arange(amounts["cpu"]).tensor_split(PIECES):
        if len(part):
            work = functools.partial(layer.on_cpu.compute, x, ids[:, part], weights[:, part])
            timeline.on_host("the CPU's experts", f"{len(part)} experts", work)
    torch.cuda.synchronize()
    return timeline


def figures(result: Result, layer: OneLayer, experts: int, seconds: float) -> None:
    """The CPU's part of a hardware profile."""
    size = layer.layout.weight_bytes
    memory = layer.records.view(-1)
    read = max(memory.nbytes / native.read_seconds(memory) for _ in range(4))
    result.figure("memory_bandwidth", read, "experts read by the kernels' threads")
    result.figure("cpu_bandwidth", min(experts * size / seconds, read), "w4 experts, a token each")
    tokens = 256
    x = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
    ids, weights = torch.arange(2).repeat(tokens, 1), torch.full((tokens, 2), 0.5)
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        layer.expected(x, ids, weights)
        spent.append(time.perf_counter() - started)
    rate = 2 * 3 * HIDDEN * INTERMEDIATE * tokens * 2 / min(spent)
    result.figure("cpu_rate", rate, f"two w4 experts, {tokens} tokens each")
