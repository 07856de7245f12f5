"""How local a model's routing is, apart from any cache policy: SRP and SCH (arXiv 2505.16056, github.com/ljcleo/moe-lrc)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dali.replay.traces.trace import Array, Trace


class RoutingPerformance(NamedTuple):
    """`srp`: the best F1; `size`: of the fixed sets that reach it, in experts a token's top_k on average."""

    srp: float
    size: float


def segment_routing_performance(trace: Trace, window: int) -> RoutingPerformance:
    """SRP: how well one fixed set of experts predicts all tokens of a window of consecutive ones.

    Over all windows of all sequences and layers, the sets are the experts with at least t uses in the window; the F1 of the t
    that is best. Sequences shorter than the window are left out; without any, both figures are NaN.
    """
    histogram = np.zeros(window + 1, dtype=np.int64)  # (window, expert) pairs by uses
    for chosen in _sequences(trace):
        if len(chosen) < window:
            continue
        uses = np.zeros((len(chosen) + 1, trace.layers * trace.experts), dtype=np.int32)
        flat = chosen.astype(np.int64) + np.arange(trace.layers)[:, None] * trace.experts
        np.put_along_axis(uses[1:], flat.reshape(len(chosen), -1), 1, axis=1)
        np.cumsum(uses, axis=0, out=uses)
        histogram += np.bincount((uses[window:] - uses[:-window]).ravel(), minlength=window + 1)
    found = np.cumsum((histogram * np.arange(window + 1))[::-1])[::-1]  # by threshold t
    predicted = np.cumsum(histogram[::-1])[::-1] * window
    if not found[0]:
        return RoutingPerformance(float("nan"), float("nan"))
    f1 = 2 * found / np.maximum(predicted + found[0], 1)
    best = int(f1.argmax())
    return RoutingPerformance(float(f1[best]), float(predicted[best] / found[0]))


def segment_cache_hit_rate(trace: Trace, window: int, slots: int) -> float:
    """SCH: the hit rate of a cache a layer that sees `window` tokens ahead, mean over layers and sequences.

    It evicts the expert with the fewest uses in the next `window` tokens, of those the least recently used. A token's experts are
    classified before it, then taken in one after another; an expert's first use counts as a hit while slots are free.
    """
    rates = [
        _look_ahead(chosen[:, layer].tolist(), window, slots)
        for chosen in _sequences(trace)
        for layer in range(trace.layers)
    ]
    return float(np.mean(rates))


def _sequences(trace: Trace) -> list[Array]:
    return [trace.ids[begin:end] for begin, end in zip(trace.seq_ptr[:-1], trace.seq_ptr[1:], strict=True)]


def _look_ahead(tokens: Sequence[Sequence[int]], window: int, slots: int) -> float:
    upcoming: dict[int, int] = {}  # uses in the tokens ahead
    for token in tokens[:window]:
        for expert in token:
            upcoming[expert] = upcoming.get(expert, 0) + 1
    last: dict[int, int] = {}  # the access of the last use of each expert seen
    cached: set[int] = set()
    hits = accesses = 0
    for at, token in enumerate(tokens):
        seen = len(last)
        for expert in token:
            if expert in cached:
                hits += 1
            elif expert not in last:
                hits += seen < slots
                seen += 1
        for expert in token:
            if expert not in cached:
                if len(cached) == slots:
                    cached.remove(min(cached, key=lambda one: (upcoming.get(one, 0), last[one])))
                cached.add(expert)
            upcoming[expert] -= 1
            accesses += 1
            last[expert] = accesses
        for expert in tokens[at + window] if at + window < len(tokens) else ():
            upcoming[expert] = upcoming.get(expert, 0) + 1
    return hits / accesses
