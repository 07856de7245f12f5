"""Figures 12 to 14 and 16 to 19 of the paper (DALI, arXiv 2602.03495), replayed from traces on its PC, beside its figures.

All times are modelled; the routing is that of the traces given, under the sizes of one of the paper's models each. Figure 15
and Table 6, which need measured planning times, are planning.py's, Table 7 is memory.py's. Sequences run as in the paper, 64
steps of as many as the batch, in the traces' order. Each figure's docstring says what is compared. Where a trace lacks the
paper's predictions nobody prefetches from gates, and figures 16 and 18 (a) are left out.

    python benchmarks/paper/figures.py TRACE:SHAPE ... [--only 12 17 ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from beside import summary
from dali import systems
from dali.errors import DaliError
from dali.policies import Policies, create
from dali.policies.prefetch import PrefetchPolicy
from dali.replay import eviction
from drawing import draw
from replays import (
    ANSWER,
    MODELS,
    RandomPrefetch,
    Replays,
    busiest,
    counts,
    load,
    play,
    prompts,
    shares,
    side_by_side,
)

SYSTEMS = ("llama.cpp", "ktransformers", "moe-lightning", "hybrimoe", "dali-paper", "default")
BATCHES = (4, 8, 16, 32, 64, 128)
BATCH = 32  # where the paper names none
FEW = 4  # batch of its figures on caching
RATIOS = ("25%", "50%", "75%")
SAMPLED = 17  # every so many layers are solved; prime to the numbers of layers

Point = tuple[str, str, float]  # group, series, value


def figure_12(replays: Replays) -> Iterator[Point]:
    """Decoding, tokens/s a sequence by batch, 50 % of the experts resident. `bound`: no policy with so many slots in each layer
    is faster; it does not hold for llama.cpp, whose slots are in whole layers."""
    slots = replays.slots("50%")
    for batch in replays.batches(BATCHES):
        steps = replays.steps(batch)
        for name in SYSTEMS:
            policies, guarded = replays.system(name, slots)
            yield f"batch {batch}", name, replays.play(policies, slots, steps, guarded).speed / batch
        yield f"batch {batch}", "bound", replays.bound(slots, steps) / batch


def figure_13(replays: Replays) -> Iterator[Point]:
    """Prefill, tokens/s a sequence by batch: the first 64 tokens of all sequences in one step, 50 % resident."""
    slots = replays.slots("50%")
    for batch in replays.batches(BATCHES):
        for name in SYSTEMS:
            policies, guarded = replays.system(name, slots)
            result = replays.timeline(policies, slots, guarded).run(prompts(replays.trace, batch))
            yield f"batch {batch}", name, result.prefill_tokens / result.prefill_seconds / batch


def figure_14(replays: Replays) -> Iterator[Point]:
    """By batch, assignments alone: no prefetching, a single resident expert a layer, which stays. (a) Decoding, tokens/s a
    sequence. (b) The optimum's time over an assignment's, the experts alone; `greedy, bound`: that below which none can be over
    greedy's."""
    trace = replays.trace
    assigns = {
        "hybrimoe": systems.get("hybrimoe").create(trace.layers, trace.experts, trace.top_k, 1).assign,
        "greedy": create("assign", "greedy"),
        "two_lane": create("assign", "two_lane"),
    }
    for batch in replays.batches(BATCHES):
        steps = [step for step in replays.steps(batch) if not step.prefill]
        for name, assign in {**assigns, "naive": create("assign", "cpu")}.items():
            policies = Policies(assign, create("prefetch", "none"), replays.cache("static", 1))
            yield f"a, batch {batch}", name, replays.play(policies, 1, steps).speed / batch
        found = shares(replays, steps, assigns, SAMPLED)
        for name, share in found.items():
            yield f"b, batch {batch}", name, share.found
        yield f"b, batch {batch}", "greedy, bound", found["greedy"].least


def figure_16(replays: Replays) -> Iterator[Point]:
    """(a) Decoding at batch 32 with greedy and prefetching, over greedy alone; resident as in figure 14. Each prefetches what the
    paper's two experts are of the layer's. (b) Share of the k busiest experts of the next layer found, batch 32."""
    if not predicts(replays):
        return
    trace, count = replays.trace, replays.scaled(2)
    steps = replays.steps(BATCH)

    def speed(policy: PrefetchPolicy) -> float:
        return replays.play(
            Policies(create("assign", "greedy"), policy, replays.cache("static", 1)), 1, steps
        ).speed

    alone = speed(create("prefetch", "none"))
    yield "a", "random", speed(RandomPrefetch(trace.layers, trace.experts, count)) / alone
    for name in ("next_gate", "residual", "ridge"):
        yield "a", name, speed(create("prefetch", name, count=count)) / alone

    for most in (1, 2, 4):
        yield f"b, top {most}", "random", most / trace.experts
        for name in ("next_gate", "residual", "ridge"):
            found = []
            for step in steps:
                if not step.prefill:
                    guess = busiest(counts(trace.predicted[name, 1][step.rows], trace.experts)[:-1], most)
                    real = busiest(counts(trace.ids[step.rows], trace.experts)[1:], most)
                    found.append((real[:, :, None] == guess[:, None, :]).any(2).mean())
            yield f"b, top {most}", name, float(np.mean(found))


def figure_17(replays: Replays) -> Iterator[Point]:
    """By cache ratio at batch 4 with greedy and no prefetching: (a) decoding, tokens/s a sequence; (b) hit rate. `hybrimoe` is
    its replacement alone, `optimum` the offline optimum of caches that fill on demand."""
    trace, steps = replays.trace, replays.steps(FEW)
    decoding = [step for step in steps if not step.prefill]
    for ratio in RATIOS:
        slots = replays.slots(ratio)
        mrs = systems.get("hybrimoe").create(trace.layers, trace.experts, trace.top_k, slots).cache
        swaps = replays.scaled(MODELS[replays.name].swaps)
        for name, cache in {
            "lru": replays.cache("lru", slots),
            "hybrimoe": mrs,
            "workload": replays.cache("workload", slots, window=4, swaps=swaps),
            "fading": replays.cache("fading", slots),
        }.items():
            played = replays.play(
                Policies(create("assign", "greedy"), create("prefetch", "none"), cache), slots, steps
            )
            yield f"a, {ratio}", name, played.speed / FEW
            yield f"b, {ratio}", name, played.hit_rate
        yield f"b, {ratio}", "optimum", eviction.replay(trace, decoding, slots, "belady-bypass").rate


def figure_18(replays: Replays) -> Iterator[Point]:
    """DALI: (a) decoding at batch 32 by experts prefetched, (b) by experts resident; (c) hit rate at batch 4 by (w_size, u_size),
    (d) by layer in each group of 8 steps, (w_size, u_size) = (8, 1). Half of the experts are resident in a, c and d; u_size
    counts the paper's model's experts."""
    trace, half = replays.trace, replays.slots("50%")

    def decoding(slots: int, prefetched: int | None) -> float:
        return replays.play(replays.paper(slots, prefetched), slots, replays.steps(BATCH)).speed / BATCH

    if predicts(replays):
        for count in (0, 1, 2, 4, 8):
            yield "a", str(count), decoding(half, count)
    usual = replays.scaled(MODELS[replays.name].prefetched) if predicts(replays) else None
    for eighths in range(1, 8):
        slots = max(round(eighths * trace.experts / 8), 1)
        yield "b", str(slots), decoding(slots, usual)

    def replacement(window: int, swaps: float) -> Policies:
        cache = replays.cache("workload", half, window=window, swaps=replays.scaled(swaps))
        return Policies(create("assign", "greedy"), create("prefetch", "none"), cache)

    base = MODELS[replays.name].experts / 16
    for window in (2, 4, 8):
        for swaps in (base, 2 * base, 4 * base):
            played = replays.play(replacement(window, swaps), half, replays.steps(FEW))
            yield f"c, w {window}", f"u {swaps:g}", played.hit_rate
    rates = []
    for steps in side_by_side(trace, FEW)[:8]:
        timeline = replays.timeline(replacement(8, 2 * base), half)
        first = len(steps) - ANSWER
        timeline.run(steps[:first])
        groups = [play(timeline, steps[at : at + 8]) for at in range(first, len(steps), 8)]
        rates.append([group.hits / group.lookups for group in groups])
    for group, row in enumerate(np.mean(rates, axis=0)):
        for layer, rate in enumerate(row):
            yield f"d, {group}", f"layer {layer}", float(rate)


def figure_19(replays: Replays) -> Iterator[Point]:
    """Decoding by batch, tokens/s a sequence; each has one more than the one before: `greedy` and `prefetch` with a single
    resident expert a layer, `resident` with 25 % that stay, `cache` with the paper's replacement of them."""
    quarter = replays.slots("25%")
    kind = (
        create("prefetch", "residual", count=replays.scaled(MODELS[replays.name].breakdown))
        if predicts(replays)
        else None
    )
    swaps = replays.scaled(MODELS[replays.name].swaps)

    def speed(batch: int, assign: str, prefetch: PrefetchPolicy | None, cache: str, slots: int) -> float:
        options = {"window": 4, "swaps": swaps} if cache == "workload" else {}
        kept = replays.cache(cache, slots, **options)
        policies = Policies(create("assign", assign), prefetch or create("prefetch", "none"), kept)
        return replays.play(policies, slots, replays.steps(batch)).speed / batch

    for batch in replays.batches(BATCHES):
        yield f"batch {batch}", "naive", speed(batch, "cpu", None, "static", 1)
        yield f"batch {batch}", "greedy", speed(batch, "greedy", None, "static", 1)
        if kind:
            yield f"batch {batch}", "prefetch", speed(batch, "greedy", kind, "static", 1)
        yield f"batch {batch}", "resident", speed(batch, "greedy", kind, "static", quarter)
        yield f"batch {batch}", "cache", speed(batch, "greedy", kind, "workload", quarter)


FIGURES: dict[str, Callable[[Replays], Iterator[Point]]] = {
    "12": figure_12,
    "13": figure_13,
    "14": figure_14,
    "16": figure_16,
    "17": figure_17,
    "18": figure_18,
    "19": figure_19,
}


def predicts(replays: Replays) -> bool:
    """Whether the trace holds the paper's predictions."""
    return ("residual", 1) in replays.trace.predicted


def rows_of(replays: Replays, figures: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for figure in figures:
        print(f"figure {figure}: {replays.trace.name} as {replays.name}", file=sys.stderr, flush=True)
        for group, series, value in FIGURES[figure](replays):
            about = {"figure": figure, "trace": replays.trace.name, "shape": replays.name}
            rows.append({**about, "group": group, "series": series, "here": float(f"{value:.4g}")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+", metavar="TRACE:SHAPE", help=f"SHAPE: {', '.join(MODELS)}")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, metavar="FIGURE", help="show these and write nothing"
    )
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for named in arguments.traces:
        try:
            replays = load(named)
        except DaliError as error:
            sys.exit(str(error))
        rows += rows_of(replays, arguments.only or list(FIGURES))
    beside = summary(rows)
    report.table(beside)
    if not arguments.only:
        report.write("paper_figures", rows, modelled=True, summary=beside)
        draw(rows)


if __name__ == "__main__":
    main()
