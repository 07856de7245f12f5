"""How well pools in RAM do over experts on disk, replayed without an accelerator: hit rates beside Belady's at the same places,
modelled speed, and what reading ahead brings.

All times are modelled. Two questions, two kinds of rows:

- `pool`: which experts to keep. A cell is a trace, batch, share of the experts in RAM and hardware profile.
- `ahead`: dali's default, which reads ahead where that pays, over the same pool on demand (`fading`), in all steps and in the
  first 48 alone. Where a trace was recorded with `dali trace --hidden`, by what the next layer's router foresees, as live runs
  ask it; and by the ridge predictions in it, in its place. Every trace also with predictions made up here: the next layer's own
  routing, each (token, layer) with the probability `right`, else experts at random. Those tell nothing of any predictor; they
  show what the rule makes of good and of useless ones.

Traces come as FILE or FILE:SHAPE, a shape of `dali simulate`. Those of the project's own models were recorded from every fourth
(smollm2-moe: eighth) of the prompts that `default_policy.py --prompts` writes, 24 (12) of them, by

    dali trace MODEL -o FILE.npz --prompts PROMPTS --hidden --batch 24 -n 64 --temp 0.8 --seed 0 --quant w8   (dali-tiny: --raw)

    python benchmarks/policies/disk_tier.py TRACE[:SHAPE] ... [--ram 25% 50% 75%] [--batch 1 8] [--profiles NAME ...]
        [--tokens 300]

Its tables are docs/EVALUATION.md's; without a trace they are printed again from the result file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.replay import cells, sweep
from dali.replay.timeline import FORESEEING
from dali.replay.traces.public import read
from dali.replay.traces.trace import Trace, write

POOLS = ("fading", "balanced", "lfu", "lru")
RIGHT = (0.9, 0.6, 0.0)
GOAL = 0.98
SHORT = 48  # steps of a short run
KEPT = (
    "trace",
    "shape",
    "profile",
    "batch",
    "ram",
    "ram_places",
    "tokens",
    "policy",
    "hit_rate",
    "ahead_rate",
)
KEPT += ("belady_disk_hit_rate", "bytes_read_per_token", "read_amplification", "stall_share")
KEPT += ("tokens_per_second", "bound_tokens_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE[:SHAPE]")
    parser.add_argument("--ram", nargs="+", default=["25%", "50%", "75%"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--profiles", nargs="+", default=["rtx3060-desktop", "laptop-8gb"])
    parser.add_argument("--tokens", type=int, default=300, help="generated tokens a cell (default 300)")
    arguments = parser.parse_args()
    if not arguments.traces:
        show(report.kept("disk_tier"))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for named in arguments.traces:
            path, _, shape = named.partition(":")
            rows += measure(path, shape or "own", arguments, Path(folder))
            print(f"{path}: {len(rows)} rows, {time.process_time():.0f} s", file=sys.stderr, flush=True)
    show(rows)
    report.write("disk_tier", rows, modelled=True, cpu_seconds=round(time.process_time()))


def measure(path: str, shape: str, arguments: Any, folder: Path) -> Iterable[dict[str, Any]]:
    """All rows of a trace."""
    trace = read(path)
    batches = [batch for batch in arguments.batch if batch <= trace.sequences]
    found = replayed(path, POOLS, shape, batches, arguments.tokens, arguments)
    yield from ({"kind": "pool", **row} for row in found)
    demanded = {cell(row): row["tokens_per_second"] for row in found if row["policy"] == "fading"}
    first = replayed(path, ["fading"], shape, [1], SHORT, arguments)
    demanded_first = {cell(row): row["tokens_per_second"] for row in first}
    guesses = {f"made, {right:g} right": made_up(trace, right) for right in RIGHT}
    for kind in (FORESEEING, "ridge"):
        if (kind, 1) in trace.predicted:
            guesses[f"recorded, {kind}"] = trace.predicted[kind, 1]
    for name, guessed in guesses.items():
        made = folder / f"{trace.name}.npz"
        write(made, replace(trace, predicted={(FORESEEING, 1): guessed}))
        cells.read_trace.cache_clear()
        cells.steps_of.cache_clear()
        found = (guessed[:, :-1, :, None] == trace.ids[:, 1:, None]).any(axis=3)
        right = {"right": round(float(found.mean()), 4)}
        for row in replayed(str(made), ("default",), shape, batches, arguments.tokens, arguments):
            yield ahead(row, demanded, name) | right
        for row in replayed(str(made), ("default",), shape, [1], SHORT, arguments):
            yield ahead(row, demanded_first, f"{name}, {SHORT} steps") | right
    cells.read_trace.cache_clear()
    cells.steps_of.cache_clear()


def replayed(
    path: str, policies: Sequence[str], shape: str, batches: Sequence[int], tokens: int, arguments: Any
) -> list[dict[str, Any]]:
    planned = cells.plan(
        [path], policies, arguments.profiles, [shape], batches, ["0"], tokens, 0, ram=arguments.ram
    )
    outcomes = sweep.sweep(planned, processes=1)
    return [{key: outcome.row[key] for key in KEPT} for outcome in outcomes]


def cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["trace"], row["profile"], row["batch"], row["ram"]


def ahead(row: dict[str, Any], demanded: dict[tuple[Any, ...], float], predictions: str) -> dict[str, Any]:
    ratio = row["tokens_per_second"] / demanded[cell(row)]
    return {"kind": "ahead", "predictions": predictions, "ratio": round(ratio, 4), **row}


def made_up(trace: Trace, right: float) -> np.ndarray:
    """Predictions of the next layer, ids as the trace's."""
    generator = np.random.default_rng(0)
    later = np.roll(trace.ids, -1, axis=1)
    chance = np.argsort(generator.random((trace.tokens, trace.layers, trace.experts), np.float32), axis=2)
    good = generator.random((trace.tokens, trace.layers, 1)) < right
    return np.where(good, later, chance[..., : trace.top_k].astype(trace.ids.dtype))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over budgets and profiles."""
    pools, guesses = defaultdict(list), defaultdict(list)
    for row in rows:
        if row["kind"] == "pool":
            pools[row["trace"], row["shape"], row["batch"]].append(row)
        else:
            guesses[row["predictions"]].append(row)
    print("| trace | sizes | batch | belady | " + " | ".join(POOLS) + " | best speed | share of the bound |")
    print("|" + "---|" * (6 + len(POOLS)))
    for (trace, shape, batch), group in pools.items():
        rates = {name: mean(group, name, "hit_rate") for name in POOLS}
        speeds = {name: mean(group, name, "tokens_per_second") for name in POOLS}
        best = max(POOLS, key=speeds.__getitem__)
        bound = statistics.fmean(row["belady_disk_hit_rate"] for row in group)
        share = statistics.fmean(
            row["tokens_per_second"] / row["bound_tokens_per_second"]
            for row in group
            if row["policy"] == "fading"
        )
        shown = " | ".join(f"{rates[name]:.3f}" for name in POOLS)
        print(f"| {trace} | {shape} | {batch} | {bound:.3f} | {shown} | {best} | {share:.2f} |")
    print(
        "\n| predictions | right | cells | mean | worst | where | best | below 0.98 |\n|---|---|---|---|---|---|---|---|"
    )
    for name, group in guesses.items():
        worst = min(group, key=lambda row: row["ratio"])
        ratios = [row["ratio"] for row in group]
        where = f"{worst['trace']}, batch {worst['batch']}, {worst['ram']}, {worst['profile']}"
        below = sum(ratio < GOAL for ratio in ratios)
        figures = f"{statistics.fmean(ratios):.3f} | {min(ratios):.3f} | {where} | {max(ratios):.3f}"
        right = f"{min(row['right'] for row in group):.3f} to {max(row['right'] for row in group):.3f}"
        print(f"| {name} | {right} | {len(group)} | {figures} | {below} |")


def mean(rows: Sequence[dict[str, Any]], policy: str, key: str) -> float:
    """Of one policy's rows; of speeds the geometric mean."""
    values = [row[key] for row in rows if row["policy"] == policy]
    return statistics.geometric_mean(values) if key == "tokens_per_second" else statistics.fmean(values)


if __name__ == "__main__":
    main()
