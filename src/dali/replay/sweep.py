"""The cells of a comparison, replayed, each with the bounds that hold for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from os import cpu_count
from typing import Any, Literal

import numpy as np

from dali import systems
from dali.hardware import profile as profiles
from dali.hardware.cost import CostModel, ExpertCosts, disk_costs
from dali.policies.once.alone import experts_seconds, loses
from dali.replay import eviction
from dali.replay.bounds import LeastSeconds, pooled_belady
from dali.replay.cells import Cell, read_trace, slots_of, steps_of
from dali.replay.disk import columns, pools
from dali.replay.explain.slices import LayerStep, explain
from dali.replay.ray_pool import ray_map
from dali.replay.shapes import Shape, shape_of
from dali.replay.spans import timeline
from dali.replay.steps import CHUNK, Forward
from dali.replay.timeline import SCRATCH, Result, Timeline, dense_seconds
from dali.replay.traces.trace import Trace
from dali.runtime.journal import Journal
from dali.systems import System

PARALLEL_EVENTS = 200_000  # from so many (step, layer) events on, other processes pay for their start

Row = dict[str, Any]
Box = tuple[str, str, float, float]


@dataclass
class Outcome:
    """A cell's row, its hit rate by layer, and the lanes of one of its steps: (lane, what, start, end) in seconds."""

    row: Row
    layer_rates: list[float]
    lanes: list[Box] = field(default_factory=list)


def sweep(
    cells: Sequence[Cell],
    advance: Callable[[int], None] = lambda done: None,
    processes: int | Literal["ray"] | None = None,
) -> list[Outcome]:
    """Replay the cells, in processes where that pays, `processes` of them at most (all cores unless given), or in all of a Ray
    cluster's; the result depends on the cells alone. `advance` is told how many are done."""
    jobs = [(cell, cold) for cell in cells for cold in _passes(cell)]
    workers = 1 if processes == "ray" else min(processes or cpu_count() or 1, 2 * len(cells))
    if processes == "ray":
        with ray_map(_replay, jobs) as results:
            outcomes = _merged(results, jobs, advance)
    elif workers == 1 or sum(_events(cell) for cell in cells) < PARALLEL_EVENTS:
        outcomes = _merged(map(_replay, jobs), jobs, advance)
    else:
        # Ctrl-C is the parent's to notice; leaving the pool ends its processes.
        with get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            outcomes = _merged(pool.imap(_replay, jobs), jobs, advance)
    _add_regret(cells, [outcome.row for outcome in outcomes])
    return outcomes


def _passes(cell: Cell) -> list[bool]:
    """Warm, and where a step is one sequence's also cold, which is a replay of its own."""
    return [False, True] if cell.batch == 1 and cell.ram is None else [False]


def _merged(
    done: Iterator[Any], jobs: Sequence[tuple[Cell, bool]], advance: Callable[[int], None]
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for (_, cold), result in zip(jobs, done, strict=True):
        if cold:
            outcomes[-1].row["cold_hit_rate"] = result
        else:
            outcomes.append(result)
            advance(len(outcomes))
    return outcomes


def _events(cell: Cell) -> int:
    trace = read_trace(cell.trace)
    tokens = trace.tokens if cell.tokens is None else min(cell.tokens, trace.tokens)
    return tokens // cell.batch * trace.layers


def _replay(job: tuple[Cell, bool]) -> Outcome | float:
    cell, cold = job
    trace, steps = read_trace(cell.trace), steps_of(cell.trace, cell.batch, cell.tokens)
    if cell.profile is None:
        slots = slots_of(cell.cache_slots, trace)
        hits = eviction.replay(trace, steps, slots, cell.policy, cell.seed, cold)
        if cold:
            return _rounded(hits.rate)
        return Outcome(_row(cell, trace, steps, hits.rate), _rates(hits.found, hits.lookups))
    if cell.ram is not None:
        return _on_disk(cell, trace, steps)
    return _cold(cell, trace, steps) if cold else _warm(cell, trace, steps)


def _timeline(cell: Cell, trace: Trace) -> Timeline:
    assert cell.profile is not None
    assert cell.shape is not None
    system = systems.get(cell.policy)
    slots = slots_of(cell.cache_slots, trace)
    shape = shape_of(trace, cell.shape)
    policies = system.create(trace.layers, trace.experts, trace.top_k, slots, cell.seed)
    model = shape.costs(profiles.load(cell.profile), max(CHUNK, cell.batch))
    return Timeline(trace, policies, shape, model, slots, system.guarded)


def explained(cell: Cell) -> list[LayerStep]:
    """What each expert did in a cell's replay, and why."""
    trace = read_trace(cell.trace)
    replay = _timeline(cell, trace)
    replay.journal = Journal(replay.costs)
    replay.run(steps_of(cell.trace, cell.batch, cell.tokens))
    return explain(replay.journal.notes, trace.top_k)


def _warm(cell: Cell, trace: Trace, steps: Sequence[Forward]) -> Outcome:
    replay = _timeline(cell, trace)
    result = replay.run(steps)
    system = systems.get(cell.policy)
    row = _row(cell, trace, steps, result.hit_rate)
    row |= {
        "tokens_per_second": _rate(result.tokens, result.seconds),
        "prefill_tokens_per_second": _rate(result.prefill_tokens, result.prefill_seconds),
        "bound_tokens_per_second": _bound(
            cell.trace, cell.batch, cell.tokens, cell.profile, cell.shape, cell.cache_slots
        ),
        "cpu_alone_tokens_per_second": _cpu_alone(
            cell.trace, cell.batch, cell.tokens, cell.profile, cell.shape
        ),
        "cpu_alone_chosen": _cpu_alone_chosen(cell.trace, cell.profile, cell.shape, cell.cache_slots),
        "accelerator_share": _rounded(result.on_accelerator / int(result.lookups.sum())),
        "prefetched_share": _rounded(result.prefetched / int(result.lookups.sum())),
        "copies_per_token": _rounded(result.copies / (result.tokens + result.prefill_tokens)),
        "signals": missing_signals(system, trace, replay.predictor, replay.predicts),
        "lossy_parts_left_out": list(system.lossy),
    }
    return Outcome(row, _rates(result.hits, result.lookups), _lanes(result, replay.costs))


def _on_disk(cell: Cell, trace: Trace, steps: Sequence[Forward]) -> Outcome:
    """A row with experts on disk: the policy is the pool's, and an accelerator has dali's default."""
    assert cell.profile is not None
    assert cell.shape is not None
    assert cell.ram is not None
    shape, profile = shape_of(trace, cell.shape), profiles.load(cell.profile)
    slots, places, disk = (
        slots_of(cell.cache_slots, trace),
        pools.places_of(cell.ram, trace, shape),
        disk_costs(profile),
    )
    system = systems.get("default" if slots else "all-cpu")
    policies = system.create(trace.layers, trace.experts, trace.top_k, slots, cell.seed)
    model = shape.costs(profile, max(CHUNK, cell.batch), accelerator=slots > 0)
    tier = pools.make(cell.policy, trace, places, disk, shape.expert_bytes)
    replay = Timeline(trace, policies, shape, model, slots, system.guarded, tier)
    result = replay.run(steps)
    read_bytes = pools.aligned(shape.expert_bytes)
    found = columns.found(result, tier.counts, shape.expert_bytes, read_bytes)
    everywhere = places + (slots * trace.layers + SCRATCH if slots else 0)
    missing = [] if tier.ahead is None or replay.predicts_ahead else ["predictions"]
    row = {
        **_which(cell, trace, slots),
        "ram": cell.ram,
        "ram_places": places,
        "reads_plainly": profile.reads_plainly,
        "tokens": result.tokens,
        **{name: None if value is None else _rounded(value) for name, value in found.items()},
        "belady_disk_hit_rate": _rounded(columns.belady(trace, steps, everywhere, cold=not slots)),
        "tokens_per_second": _rate(result.tokens, result.seconds),
        "prefill_tokens_per_second": _rate(result.prefill_tokens, result.prefill_seconds),
        "bound_tokens_per_second": _disk_bound(cell, trace, steps, model, everywhere),
        "modelled": True,
        "signals": f"signal missing: {', '.join(missing)}" if missing else "complete",
    }
    return Outcome(row, _rates(result.lookups - np.array(tier.useful), result.lookups))


def _disk_bound(
    cell: Cell, trace: Trace, steps: Sequence[Forward], model: CostModel, places: int
) -> float | None:
    """Generated tokens a modelled second that no pool of so many places exceeds: what computing takes with all experts in RAM, or
    what reading takes that nobody can avoid."""
    assert cell.profile is not None
    assert cell.shape is not None
    shape, disk = shape_of(trace, cell.shape), disk_costs(profiles.load(cell.profile))
    cold = not slots_of(cell.cache_slots, trace)
    tokens = sum(len(step.rows) for step in steps if not step.prefill)
    reading = columns.least_read_seconds(trace, steps, places, pools.aligned(shape.expert_bytes), disk, cold)
    bound = _rate(tokens, reading)
    if slots_of(cell.cache_slots, trace):
        computing = _bound(cell.trace, cell.batch, cell.tokens, cell.profile, cell.shape, cell.cache_slots)
    else:
        computing = _rate(tokens, columns.cpu_seconds(trace, steps, model, dense_seconds(shape, model)))
    return min([rate for rate in (bound, computing) if rate is not None], default=None)


def _lanes(result: Result, costs: ExpertCosts) -> list[Box]:
    """The kept layers' boxes one after another; dense parts on the accelerator's lane."""
    boxes: list[Box] = []
    for dense_start, start, layer_plan, workload, view in result.drawn:
        boxes.append(("gpu", "dense", dense_start, start))
        boxes += [
            (span.lane, str(span.expert), start + span.start, start + span.end)
            for span in timeline(layer_plan, workload, view, costs)
        ]
    return boxes


def _cold(cell: Cell, trace: Trace, steps: Sequence[Forward]) -> float:
    """The hit rate when each sequence starts with policies and residents as at the very first."""
    hits = lookups = 0
    begin = 0
    while begin < len(steps):
        end = begin
        while end < len(steps) and steps[end].sequences[0] == steps[begin].sequences[0]:
            end += 1
        result = _timeline(cell, trace).run(steps[begin:end])
        hits, lookups = hits + int(result.hits.sum()), lookups + int(result.lookups.sum())
        begin = end
    return _rounded(hits / lookups)


def missing_signals(system: System, trace: Trace, predictor: str | None, predicts: bool) -> str:
    """What the policy asks for and the trace lacks, or "complete"."""
    missing = set(system.signals - trace.signals)
    if predictor:  # its gate inputs are the recorded predictions
        missing = missing - {"gate_inputs"} if predicts else missing | {"gate_inputs"}
    return f"signal missing: {', '.join(sorted(missing))}" if missing else "complete"


def _which(cell: Cell, trace: Trace, slots: int) -> Row:
    """What a row is of."""
    return {
        "policy": cell.policy,
        "trace": trace.name,
        "profile": cell.profile,
        "shape": cell.shape,
        "batch": cell.batch,
        "cache_slots": cell.cache_slots,
        "slots": slots,
    }


def _row(cell: Cell, trace: Trace, steps: Sequence[Forward], hit_rate: float) -> Row:
    slots = slots_of(cell.cache_slots, trace)
    return {
        **_which(cell, trace, slots),
        "tokens": sum(len(step.rows) for step in steps if not step.prefill),
        "hit_rate": _rounded(hit_rate),
        "cold_hit_rate": None,
        **_cache_bounds(cell.trace, cell.batch, cell.tokens, slots, cell.seed),
        "tokens_per_second": None,
        "modelled": cell.profile is not None,
    }


def _add_regret(cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    """How much slower a row is than the best policy in hindsight, all else alike: a share of the best one's time."""
    alike = [replace(cell, policy="") for cell in cells]
    best: dict[Cell, float] = {}
    for cell, row in zip(alike, rows, strict=True):
        best[cell] = max(best.get(cell, 0.0), row["tokens_per_second"] or 0.0)
    for cell, row in zip(alike, rows, strict=True):
        speed = row["tokens_per_second"]
        row["regret"] = _rounded(best[cell] / speed - 1) if speed else None


@lru_cache(maxsize=64)
def _cache_bounds(path: str, batch: int, tokens: int | None, slots: int, seed: int) -> Row:
    """Belady's hit rates, above, and that of random eviction, below."""
    trace, steps = read_trace(path), steps_of(path, batch, tokens)
    return {
        "belady_bypass_hit_rate": _rounded(eviction.replay(trace, steps, slots, "belady-bypass").rate),
        "belady_pooled_hit_rate": _rounded(pooled_belady(trace, steps, slots * trace.layers)),
        "random_hit_rate": _rounded(eviction.replay(trace, steps, slots, "random", seed).rate),
    }


@lru_cache(maxsize=64)
def _bound(
    path: str, batch: int, tokens: int | None, profile: str, shape_name: str, cache_slots: str
) -> float | None:
    """Generated tokens a modelled second that no policy of so many slots a layer exceeds, whatever is in them."""
    trace = read_trace(path)
    steps = [step for step in steps_of(path, batch, tokens) if not step.prefill]
    shape = shape_of(trace, shape_name)
    model = shape.costs(profiles.load(profile), max(CHUNK, batch))
    before = dense_seconds(shape, model)
    base = np.arange(trace.layers)[:, None] * trace.experts

    def workloads() -> Iterator[list[int]]:
        for step in steps:
            flat = trace.ids[step.rows].astype(np.int64) + base
            counts = np.bincount(flat.ravel(), minlength=trace.layers * trace.experts)
            yield from counts.reshape(trace.layers, -1).tolist()

    dense = [before(len(step.rows)) + model.costs.launch for step in steps for _ in range(trace.layers)]
    seconds = LeastSeconds(slots_of(cache_slots, trace), model.costs).run(workloads(), dense)
    return _rate(sum(len(step.rows) for step in steps), seconds)


@lru_cache(maxsize=64)
def _cpu_alone(path: str, batch: int, tokens: int | None, profile: str, shape_name: str) -> float | None:
    """Generated tokens a modelled second without the accelerator."""
    trace, steps = read_trace(path), steps_of(path, batch, tokens)
    shape = shape_of(trace, shape_name)
    model = shape.costs(profiles.load(profile), max(CHUNK, batch), accelerator=False)
    seconds = columns.cpu_seconds(trace, steps, model, dense_seconds(shape, model))
    return _rate(sum(len(step.rows) for step in steps if not step.prefill), seconds)


@lru_cache(maxsize=64)
def _cpu_alone_chosen(path: str, profile: str, shape_name: str, cache_slots: str) -> bool:
    """Whether a live run on that machine would do without its accelerator, were it measured."""
    trace = read_trace(path)
    shape, machine = shape_of(trace, shape_name), profiles.load(profile)
    beside, alone = (shape.costs(machine, CHUNK, accelerator=there) for there in (True, False))
    return chooses_cpu(trace, shape, beside, alone, slots_of(cache_slots, trace))


def chooses_cpu(trace: Trace, shape: Shape, beside: CostModel, alone: CostModel, slots: int) -> bool:
    """Whether a token takes too long with an accelerator (`beside`) that has so many residents a layer, where it may find any of
    them, as `policies.once.alone` has it before the first step."""
    routed = experts_seconds(beside.costs, trace.experts, trace.top_k, slots, SCRATCH if slots else 0)
    with_it = routed + dense_seconds(shape, beside)(1) + beside.costs.launch
    without = trace.top_k * alone.costs.cpu[1] + alone.costs.call + dense_seconds(shape, alone)(1)
    return loses(with_it, without)


def _rates(found: Any, lookups: Any) -> list[float]:
    return [_rounded(float(rate)) for rate in found / np.maximum(lookups, 1)]


def _rate(count: int, seconds: float) -> float | None:
    return _rounded(count / seconds) if seconds else None


def _rounded(value: float) -> float:
    """Six figures: more mean nothing, and make reports hard to read."""
    return float(f"{value:.6g}")
