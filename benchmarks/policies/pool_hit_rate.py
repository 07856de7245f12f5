"""How near the policies of a pool in RAM over a disk come to the offline optimum, and how much of the rest is chance.

Hits alone, no times (dali.replay.disk.hits): one pool for all layers, empty at first. A cell is a trace, a batch and a share of
the experts in RAM; a row says, of its active experts, how many were found there

- by Belady's rule, which knows the future;
- by each policy, which knows the past;
- by the best set of experts that never changes, each read once ("fixed"), which knows the future as well;
- and what chance alone costs. Each expert's odds of being used in the next step are estimated by least squares, over all of the
  trace, from what it was used of late and from what followed the experts of the step (as `fading` counts it). Then routing is
  drawn by these odds, as many experts a layer and step as there were. In what was drawn, "odds" ranks by those very odds, and
  Belady's rule knows the draws. What lies between them no policy gets that knows the odds and not the draws.

    python benchmarks/policies/pool_hit_rate.py TRACE ... [--ram 10% 25% 50% 75%] [--batch 1 8] [--tokens 480]

Traces are those of disk_tier.py. Its tables are docs/EVALUATION.md's; without a trace they are printed again from the result
file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.policies import create
from dali.policies.pool import PoolPolicy
from dali.policies.pool.fading import FAR
from dali.replay.bounds import pooled_hits
from dali.replay.disk.hits import pooled
from dali.replay.steps import Forward, forwards
from dali.replay.traces.public import read
from dali.replay.traces.trace import Array, Trace

POLICIES = ("fading", "balanced", "lfu", "lru")
GOAL = 0.9  # of Belady's
LONGER = (
    0.0,
    0.5,
    2.0,
)  # what "odds" weighs an expert's usual rate by, beside the next step's odds: the best of them counts
FADES = 0.5, 0.85, 0.97  # a step, of the sums that the odds are estimated from


class Odds(PoolPolicy):
    """Ranks by the odds of the layer's next step, [steps, layers, experts], and by `longer` times the usual ones."""

    def __init__(self, odds: Array, usual: Array, longer: float, slots: int) -> None:
        _, layers, experts = odds.shape
        super().__init__(layers, experts, slots, [1.0] * layers)
        self._ranks = odds + longer * usual
        self._step = [0] * layers

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        self._step[layer] += 1
        ranks: list[float] = self._ranks[self._step[layer] - 1, layer].tolist()
        return ranks

    def worth(self, rank: float, wait: float) -> float:
        return rank * (1 - FAR * wait)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE")
    parser.add_argument("--ram", nargs="+", type=share, default=[0.1, 0.25, 0.5, 0.75])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=480, help="generated tokens a cell (default 480)")
    arguments = parser.parse_args()
    if not arguments.traces:
        show(report.kept("pool_hit_rate"))
        return
    rows: list[dict[str, Any]] = []
    for path in arguments.traces:
        trace = read(path)
        for batch in arguments.batch:
            if batch <= trace.sequences:
                rows += measured(trace, batch, arguments.ram, arguments.tokens)
                print(f"{path}: {len(rows)} rows, {time.process_time():.0f} s", file=sys.stderr, flush=True)
    show(rows)
    report.write("pool_hit_rate", rows, cpu_seconds=round(time.process_time()))


def share(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def measured(trace: Trace, batch: int, shares: Sequence[float], tokens: int) -> Iterator[dict[str, Any]]:
    """A trace's rows of one batch size."""
    steps = forwards(trace, batch, tokens)
    used = uses(trace, steps)
    odds, usual = estimated(used)
    chance, draws = drawn(trace, used, odds)
    for ram in shares:
        slots = int(ram * trace.layers * trace.experts + 0.5)
        row: dict[str, Any] = {"trace": trace.name, "batch": batch, "ram": ram, "slots": slots}
        row |= {"steps": len(steps), "belady": optimum(trace, steps, slots), "fixed": fixed(used, slots)}
        for name in POLICIES:
            sizes = {"layers": trace.layers, "experts": trace.experts, "slots": slots}
            policy = create("pool", name, **sizes, read_seconds=[1.0] * trace.layers)
            row[name] = round(pooled(trace, steps, policy).rate, 4)
        row["drawn_belady"] = optimum(chance, draws, slots)
        row["drawn_odds"] = max(
            round(pooled(chance, draws, Odds(odds, usual, longer, slots)).rate, 4) for longer in LONGER
        )
        yield row


def uses(trace: Trace, steps: Sequence[Forward]) -> Array:
    """[steps, layers, experts]: whether the step used it."""
    used = np.zeros((len(steps), trace.layers, trace.experts), bool)
    for index, step in enumerate(steps):
        for layer in range(trace.layers):
            used[index, layer, trace.ids[step.rows, layer].ravel()] = True
    return used


def optimum(trace: Trace, steps: Sequence[Forward], slots: int) -> float:
    hits, lookups = pooled_hits(trace, steps, slots, cold=True)
    return round(hits / lookups, 4)


def fixed(used: Array, slots: int) -> float:
    """The hit rate of the best set that never changes; its first uses are reads."""
    most = np.sort(used.sum(0).ravel())[::-1]
    return round(float(np.maximum(most[:slots] - 1, 0).sum() / most.sum()), 4)


def estimated(used: Array) -> tuple[Array, Array]:
    """The odds that each expert is used in the step after each one, and its usual rate by then."""
    now = used.astype(np.float32)
    sums = [faded(now, fades) for fades in FADES]
    usual = np.cumsum(now, axis=0) / np.arange(1, len(now) + 1, dtype=np.float32)[:, None, None]
    follows = followers(now)
    seen = np.stack([now, *sums, usual, follows, follows**2 / (usual + 0.02), np.ones_like(now)], -1)
    known = seen[:-1].reshape(-1, seen.shape[-1]).astype(np.float64)
    weights, *_ = np.linalg.lstsq(known.T @ known, known.T @ now[1:].ravel(), rcond=None)
    return np.clip(seen @ weights, 0.004, 0.996), usual


def faded(now: Array, fades: float) -> Array:
    """A running mean of the uses."""
    rates, rate = np.empty_like(now), np.zeros_like(now[0])
    for step, of_step in enumerate(now):
        rate = fades * rate + (1 - fades) * of_step
        rates[step] = rate
    return rates


def followers(now: Array) -> Array:
    """For each step the mean, over its experts, of how often each one was used a step after them so far."""
    steps, layers, experts = now.shape
    after, times = np.zeros((layers, experts, experts), np.float32), np.zeros((layers, experts), np.float32)
    means = np.empty_like(now)
    for step in range(steps):
        if step:
            before = now[step - 1]
            share_of = before * np.maximum(0.02, 1 / (times + 2))
            after += share_of[:, :, None] * (now[step][:, None, :] - after)
            times += before
        wanted = np.maximum(now[step].sum(1, keepdims=True), 1)
        means[step] = np.einsum("lb,lba->la", now[step], after) / wanted
    return means


def drawn(trace: Trace, used: Array, odds: Array) -> tuple[Trace, list[Forward]]:
    """Routing drawn by the odds, one event a step and layer, as many experts as there were."""
    generator = np.random.default_rng(0)
    keys = np.log(odds / (1 - odds)) + generator.gumbel(size=odds.shape)
    order = np.argsort(-keys, axis=2)
    counts = used.sum(2)
    ids = np.zeros((*counts.shape, int(counts.max())), np.uint16)
    ids[0] = padded(used[0], ids.shape[2])
    for step in range(1, len(ids)):
        places = np.minimum(np.arange(ids.shape[2]), counts[step][:, None] - 1)
        ids[step] = np.take_along_axis(order[step - 1], places, axis=1)
    made = replace(trace, ids=ids, seq_ptr=np.array([0, len(ids)]), phase=np.ones(len(ids), np.uint8))
    return made, [Forward(np.array([step]), np.array([0]), False) for step in range(len(ids))]


def padded(used: Array, width: int) -> Array:
    """[layers, width]: the ids of the used ones, the last one again where there are fewer."""
    return np.array([np.resize(np.pad(np.flatnonzero(one), (0, width), mode="edge"), width) for one in used])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a trace and batch, hit rates over all shares; then by share; then what chance costs."""
    names = ("belady", "fixed", *POLICIES)
    print(f"| trace | batch | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}")
    for trace, batch in dict.fromkeys((row["trace"], row["batch"]) for row in rows):
        group = [row for row in rows if (row["trace"], row["batch"]) == (trace, batch)]
        means = " | ".join(f"{statistics.fmean(row[name] for row in group):.3f}" for name in names)
        print(f"| {trace} | {batch} | {means} |")
    within = [row for row in rows if row["fading"] >= GOAL * row["belady"]]
    print(
        f"\nfading: at least {GOAL:g} of Belady's in {len(within)} of {len(rows)} cells; the best of all policies in",
        end=" ",
    )
    print(sum(row["fading"] >= max(row[name] for name in POLICIES) - 5e-4 for row in rows))
    print("\n| trace | batch | RAM | belady | fading | missing | by chance: belady | odds | missing |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        missing, luck = row["belady"] - row["fading"], row["drawn_belady"] - row["drawn_odds"]
        real = f"{row['belady']:.3f} | {row['fading']:.3f} | {missing:.3f}"
        chance = f"{row['drawn_belady']:.3f} | {row['drawn_odds']:.3f} | {luck:.3f}"
        print(f"| {row['trace']} | {row['batch']} | {100 * row['ram']:g} % | {real} | {chance} |")


if __name__ == "__main__":
    main()
