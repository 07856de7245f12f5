"""Where a trace's tokens were routed, as one self-contained HTML page: use by layer and expert, how soon experts come again, and
what a cache finds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from dali.policies import create
from dali.replay import eviction
from dali.replay.report import plots
from dali.replay.steps import Forward, forwards
from dali.replay.traces.trace import Array, Trace

TOKENS = 1000  # generated ones, at most, of distances and hit rates
SHARES = (10, 25, 50, 75, 90)  # of a layer's experts
FADING, BOUND = "fading", "belady-bypass"


def page(trace: Trace) -> str:
    """The page. UsageError: the trace has no step of a generated token."""
    steps = forwards(trace, 1, TOKENS)
    figures = [usage(trace), _distances(trace, steps), _hit_rates(trace, steps)]
    about = (
        f"{trace.tokens:,} tokens of {trace.sequences:,} sequences, {trace.layers} layers with {trace.experts} experts, of which "
        f"a token uses {trace.top_k}. Distances and hit rates are of {len(steps):,} steps, one sequence after another."
    )
    return _PAGE.format(name=escape(trace.name), about=about, figures="".join(figures))


def figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def usage(trace: Trace) -> str:
    """A heat map of layers and experts."""
    uses = [
        np.bincount(trace.ids[:, layer].ravel(), minlength=trace.experts) for layer in range(trace.layers)
    ]
    most = float(max(layer.max() for layer in uses)) / trace.tokens
    shares = {f"layer {index}": (layer / trace.tokens).tolist() for index, layer in enumerate(uses)}
    return figure("How often a layer's experts are used, a token.", plots.heat_map(shares, "expert", most))


def reuse_distances(trace: Trace, steps: Sequence[Forward]) -> Array:
    """[layers, experts]: uses of an expert after so many others of its layer were used since its last one; first uses are left
    out. All of a step's experts are used together, so none of them counts for another."""
    last = np.full((trace.layers, trace.experts), -1)
    found = np.zeros((trace.layers, trace.experts), np.int64)
    for index, step in enumerate(steps):
        layers, experts = np.divmod(eviction.active_experts(trace, step), trace.experts)
        before = last[layers, experts]
        between = (last[layers] > before[:, None]).sum(axis=1)
        again = before >= 0
        np.add.at(found, (layers[again], between[again]), 1)
        last[layers, experts] = index
    return found


def fading_hit_rate(trace: Trace, steps: Sequence[Forward], slots: int) -> float:
    """Of the policy `fading`, as a cache alone; it starts with residents drawn at random."""
    policy = create("cache", FADING, layers=trace.layers, experts=trace.experts, capacity=slots)
    residents = [set(policy.initial(layer)) for layer in range(trace.layers)]
    found = lookups = 0
    for step in steps:
        chosen = trace.ids[step.rows].transpose(1, 0, 2).reshape(trace.layers, -1)
        for layer, resident in enumerate(residents):
            workload = np.bincount(chosen[layer], minlength=trace.experts).tolist()
            active = {expert for expert, tokens in enumerate(workload) if tokens}
            found, lookups = found + len(active & resident), lookups + len(active)
            for swap in policy.observe(layer, workload, resident, active - resident):
                resident.remove(swap.evict)
                resident.add(swap.load)
    return found / lookups


def _distances(trace: Trace, steps: Sequence[Forward]) -> str:
    found = reuse_distances(trace, steps)
    shares = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    rows = {f"layer {layer}": row.tolist() for layer, row in enumerate(shares)}
    title = "Reuse distance: how many other experts of the layer were used since an expert's last use; share of the layer's uses."
    return figure(title, plots.heat_map(rows, "other experts", float(shares.max())))


def _hit_rates(trace: Trace, steps: Sequence[Forward]) -> str:
    series: dict[str, list[tuple[float, float]]] = {name: [] for name in ("lru", FADING, "belady", BOUND)}
    for share in SHARES:
        slots = max(round(share * trace.experts / 100), 1)
        for name, points in series.items():
            found = (
                fading_hit_rate(trace, steps, slots)
                if name == FADING
                else eviction.replay(trace, steps, slots, name).rate
            )
            points.append((share, found))
    title = (
        f"Hit rate of a cache alone against slots, in % of a layer's {trace.experts} experts. Dashed: the offline optima, of "
        "caches that take in every expert used and of those that need not. fading begins with residents drawn at random and may "
        "copy ahead of demand, lru and belady begin empty."
    )
    return figure(title, plots.lines(series, "slots, %", "hit rate", ("belady", BOUND)))


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>dali trace: {name}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }}
figure {{ display: inline-block; width: min(660px, 100%); margin: 0 1em 1.5em 0; vertical-align: top }}
figcaption {{ margin-bottom: .4em }} svg {{ width: 100% }} svg text {{ font: 11px system-ui, sans-serif }}
</style></head><body><h1>dali trace: {name}</h1><p>{about}</p>{figures}</body></html>
"""
