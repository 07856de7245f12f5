"""How the default compares with every other system, replayed, their lossy parts off: a cell's modelled decoding speed under the
default over the best of the others under the same routing, batch, cache slots and hardware profile.

All times are modelled. One half of each trace's sequences is replayed (of a single sequence, one half of its tokens): what the
default rests on was chosen on the first half, `--half second`, the default here, holds what was not looked at. A cell replays
--tokens generated tokens, but at least --steps steps where the trace holds them, with the prompts before them (not timed).
Residents start at random, by --seed. What a cell's replays took is its cpu_seconds.

Traces come as FILE or FILE:SHAPE, a shape of `dali simulate` for routing whose model's sizes are not known, or too small to be
worth an accelerator. Those of the project's own models were recorded from texts/: --prompts writes 96 prompts, then

    dali trace MODEL -o FILE.npz --prompts PROMPTS --hidden --batch 32 -n 64 --temp 0.8 --seed 0 --quant w8   (dali-tiny: --raw)

    python benchmarks/policies/default_policy.py TRACE[:SHAPE] ... [--half first|second] [--tokens 4000] [--batch 1 4 8 32]
        [--slots 10% 25% 50%] [--steps 64] [--profiles NAME ...] [--systems NAME ...] [--seed 0] [--workers 1]

Its first table is docs/EVALUATION.md's; without a trace it is printed again from the result file.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali import systems
from dali.hardware import profile as profiles
from dali.replay.cells import slots_of
from dali.replay.shapes import shape_of
from dali.replay.steps import CHUNK, Forward, forwards
from dali.replay.timeline import Timeline
from dali.replay.traces.public import read
from dali.replay.traces.trace import Trace

TEXTS = Path(__file__).parents[1] / "texts"
GOAL = 0.98


class Cell(NamedTuple):
    path: str
    shape: str
    half: str
    batch: int
    slots: str
    profile: str
    tokens: int
    fewest: int  # steps
    seed: int


def half(trace: Trace, which: str) -> Trace:
    """The first or the second half of its sequences; of a single one, of its tokens."""
    if trace.sequences > 1:
        middle = trace.sequences // 2
        pointers = trace.seq_ptr[: middle + 1] if which == "first" else trace.seq_ptr[middle:]
    else:
        pointers = np.array([0, trace.tokens // 2] if which == "first" else [trace.tokens // 2, trace.tokens])
    rows = slice(int(pointers[0]), int(pointers[-1]))
    fields = ("ids", "phase", "weights", "scores", "gate_inputs", "embeddings")
    parts = {name: getattr(trace, name) for name in fields}
    return replace(
        trace,
        seq_ptr=pointers - pointers[0],
        predicted={key: ids[rows] for key, ids in trace.predicted.items()},
        **{name: None if part is None else part[rows] for name, part in parts.items()},
    )


@lru_cache(maxsize=2)
def routing(path: str, which: str) -> Trace:
    """Predictions stand for the gate inputs they were made from."""
    return half(replace(read(path), gate_inputs=None), which)


@lru_cache(maxsize=8)
def steps(path: str, which: str, batch: int, tokens: int, fewest: int) -> list[Forward]:
    return forwards(routing(path, which), batch, max(tokens, fewest * batch))


def speed(cell: Cell, name: str) -> float:
    """Generated tokens a modelled second."""
    trace, system = routing(cell.path, cell.half), systems.get(name)
    capacity, shape = slots_of(cell.slots, trace), shape_of(trace, cell.shape)
    model = shape.costs(profiles.load(cell.profile), max(CHUNK, cell.batch))
    policies = system.create(trace.layers, trace.experts, trace.top_k, capacity, cell.seed)
    timeline = Timeline(trace, policies, shape, model, capacity, system.guarded)
    result = timeline.run(steps(cell.path, cell.half, cell.batch, cell.tokens, cell.fewest))
    return result.tokens / result.seconds


def compare(job: tuple[Cell, tuple[str, ...]]) -> dict[str, Any]:
    cell, names = job
    replayed = steps(cell.path, cell.half, cell.batch, cell.tokens, cell.fewest)
    decoded = sum(len(s.rows) for s in replayed if not s.prefill)
    began = time.process_time()
    speeds = {name: speed(cell, name) for name in names}
    default = speed(cell, "default")
    best = max(speeds, key=speeds.__getitem__)
    return {
        "trace": Path(cell.path).stem,
        "shape": cell.shape,
        "batch": cell.batch,
        "slots": cell.slots,
        "profile": cell.profile,
        "tokens": decoded,
        "ratio": round(default / speeds[best], 4),
        "best_other": best,
        "default_tokens_per_second": round(default, 2),
        "cpu_seconds": round(time.process_time() - began, 1),
        "others": {name: round(each / default, 4) for name, each in speeds.items()},
    }


def opponents() -> list[str]:
    """Every system and its variants but the default."""
    found = [name for name in systems.names() if name != "default"]
    return found + [f"{name}:{variant}" for name in found for variant in systems.get(name).variants]


def prompts() -> str:
    """96 prompts, one a line: the first 40 words of paragraphs of the texts, shuffled."""
    texts = [(TEXTS / f"{name}.txt").read_text("utf-8") for name in ("dialogue", "household", "perplexity")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    short = [" ".join(line.split()[:40]) for line in lines if 40 <= len(line) <= 400]
    random.Random(0).shuffle(short)
    return "\n".join(short[:96]) + "\n"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a trace, and one of all, as docs/EVALUATION.md has them."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sizes = "" if row["shape"] == "own" else f" as {row['shape']}"
        groups[row["trace"].removesuffix("_dev") + sizes].append(row)
    lines = [f"| trace | cells | mean | worst | where | below {GOAL} |", "|---|---|---|---|---|---|"]
    for name, found in [*groups.items(), ("all", rows)]:
        worst = min(found, key=lambda row: row["ratio"])
        where = f"batch {worst['batch']}, {worst['slots'].replace('%', ' %')}, {worst['profile']}, by {worst['best_other']}"
        mean = statistics.fmean(row["ratio"] for row in found)
        below = sum(row["ratio"] < GOAL for row in found)
        lines.append(f"| {name} | {len(found)} | {mean:.3f} | {worst['ratio']:.3f} | {where} | {below} |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = min(rows, key=lambda row: row["ratio"])
    where = " ".join(str(worst[key]) for key in ("trace", "shape", "batch", "slots", "profile"))
    return {
        "cells": len(rows),
        "mean": round(statistics.fmean(row["ratio"] for row in rows), 4),
        "worst": worst["ratio"],
        f"below {GOAL}": sum(row["ratio"] < GOAL for row in rows),
        "worst cell": f"{where} (best: {worst['best_other']})",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE[:SHAPE]")
    parser.add_argument("--half", choices=("first", "second"), default="second")
    parser.add_argument("--tokens", type=int, default=4000, help="generated tokens a cell (default 4000)")
    parser.add_argument("--steps", type=int, default=64, help="of a cell, at least (default 64)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--slots", nargs="+", default=["10%", "25%", "50%"])
    parser.add_argument("--profiles", nargs="+", default=profiles.known())
    parser.add_argument("--systems", nargs="+", default=opponents())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--name", default="default_policy", help="of the result file")
    parser.add_argument(
        "--prompts", type=Path, help="write the prompts of the recorded traces here, and stop"
    )
    arguments = parser.parse_args()
    if arguments.prompts is not None:
        arguments.prompts.write_text(prompts(), "utf-8")
        return
    if not arguments.traces:
        print(markdown(report.kept(arguments.name)))
        return

    cells, began = [], time.monotonic()
    for named in arguments.traces:
        path, _, shape = named.partition(":")
        trace = routing(path, arguments.half)
        answering = len({np.searchsorted(trace.seq_ptr, row, "right") for row in np.flatnonzero(trace.phase)})
        batches = [batch for batch in arguments.batch if batch <= answering]
        cells += [
            Cell(
                path, shape or "own", arguments.half, *rest, arguments.tokens, arguments.steps, arguments.seed
            )
            for rest in product(batches, arguments.slots, arguments.profiles)
        ]
    jobs = [(cell, tuple(arguments.systems)) for cell in cells]
    rows: list[dict[str, Any]] = []
    with get_context("spawn").Pool(arguments.workers) as pool:
        for row in pool.imap(compare, jobs):
            rows.append(row)
            brief = [
                str(row[key])
                for key in ("trace", "shape", "batch", "slots", "profile", "ratio", "best_other")
            ]
            print(f"{len(rows)}/{len(cells)}", *brief, file=sys.stderr, flush=True)

    print(markdown(rows), end="\n\n")
    for column in ("batch", "slots", "profile"):
        groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            groups[row[column]].append(row)
        report.table([{column: str(group), **summary(found)} for group, found in groups.items()])
        print()
    off = {name: list(systems.get(name).lossy) for name in arguments.systems if systems.get(name).lossy}
    print("Lossy parts that are off:")
    report.table([{"system": name, "parts": ", ".join(parts)} for name, parts in off.items()])
    report.write(
        arguments.name,
        rows,
        modelled=True,
        minutes={
            "wall": round((time.monotonic() - began) / 60, 1),
            "cpu": round(sum(row["cpu_seconds"] for row in rows) / 60, 1),
            "workers": arguments.workers,
        },
        lossy_parts_off=off,
        summary=summary(rows),
    )


if __name__ == "__main__":
    main()
