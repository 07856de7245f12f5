"""Event-atomic replay of a cache alone: no timeline, only what is found where it is needed.

An event is one (step, layer): the union of the experts its tokens chose is classified once, against the residents before it; then
all of them become residents, and the lowest ranked of the others are evicted until the layer's slots hold the rest. Among equal
ranks the lower id goes first. An event larger than the cache keeps its own highest ranked. All layers go through a step at once.

    lru       rank = the event of the last use
    lfu       rank = events used in, ever
    lfu-age   rank = that count x 0.98 ^ (events since the last use)
    mrs       HybriMoE (arXiv 2504.05897): S = a s + (1 - a) S with a = 0.5, s a token's scores among its highest 2 top_k;
              weights, or else one for each chosen expert, where a trace has no scores
    random    a random one
    belady    the one whose next use is farthest away: the optimum of caches that take in every expert used
    belady-bypass  the same, free not to take an expert in, and with the best start: the optimum of all that fill on demand
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dali.errors import UsageError
from dali.replay.steps import Forward
from dali.replay.traces.trace import Array, Trace

POLICIES = ("lru", "lfu", "lfu-age", "mrs", "random", "belady", "belady-bypass")
AGEING = 0.98
NEVER = 2.0**24  # the step of the next use of an expert that is not used again
PROTECTED = 2.0**25  # added to the ranks of experts in use: more than any rank
TIE = 1e-7  # a rank's share of the expert's id
OFFSET = 2.0**10  # keeps a logarithm's rank apart from 0, which says that there is none yet


class Hits(NamedTuple):
    """Lookups by layer: one an active expert and event."""

    found: Array  # [layers]
    lookups: Array  # [layers]

    @property
    def rate(self) -> float:
        return float(self.found.sum() / self.lookups.sum())


def replay(
    trace: Trace, steps: Sequence[Forward], slots: int, policy: str, seed: int = 0, cold: bool = False
) -> Hits:
    """Hits of a cache of `slots` experts a layer over the steps. It starts empty; `cold`: anew with each sequence, where a
    step is one sequence's. UsageError: no policy has the name."""
    check(policy)
    layers, experts = trace.layers, trace.experts
    active = [active_experts(trace, step) for step in steps]
    bypass = policy == "belady-bypass"
    rank = np.zeros(layers * experts)
    rerank = _RANKS[policy](trace, steps, active, rank, seed)
    ties = np.arange(experts) * TIE
    resident = np.zeros(layers * experts, dtype=bool)
    if bypass:
        resident[:] = _best(rank.reshape(layers, experts) + ties, slots).ravel()
    found, lookups = np.zeros(layers, np.int64), np.zeros(layers, np.int64)
    before = -1
    for index, flat in enumerate(active):
        if cold and steps[index].sequences[0] != before:
            before = steps[index].sequences[0]
            resident[:] = False
            if not policy.startswith("belady"):
                rank[:] = 0.0
        layer = flat // experts
        found += np.bincount(layer[resident[flat]], minlength=layers)
        lookups += np.bincount(layer, minlength=layers)
        rerank(index, flat)
        key = rank + 0.0
        if not bypass:
            key[flat] += PROTECTED
        resident[flat] = True
        key[~resident] = -np.inf
        best = _best(key.reshape(layers, experts) + ties, slots).ravel()
        resident &= best
    return Hits(found, lookups)


def check(policy: str) -> None:
    """UsageError: no policy has the name."""
    if policy not in POLICIES:
        raise UsageError(
            f"There is no policy {policy!r} for a cache alone.", f"Use some of {', '.join(POLICIES)}."
        )


def _best(key: Array, slots: int) -> Array:
    """Which `slots` of each row are the largest: bool as `key`."""
    experts = key.shape[1]
    if slots >= experts:
        return np.ones_like(key, dtype=bool)
    if slots == 0:
        return np.zeros_like(key, dtype=bool)
    bar = np.partition(key, experts - slots, axis=1)[:, experts - slots]
    return key >= bar[:, None]


def active_experts(trace: Trace, step: Forward) -> Array:
    """The step's events, as layer x experts + expert, ascending."""
    flat = trace.ids[step.rows].astype(np.int64) + np.arange(trace.layers)[:, None] * trace.experts
    return np.unique(flat)


def next_uses(active: Sequence[Array], size: int) -> tuple[list[Array], Array]:
    """For each event's experts the step of their next use, NEVER if there is none; and of everybody's first use [size]."""
    upcoming = np.full(size, NEVER)
    uses = []
    for index in range(len(active) - 1, -1, -1):
        flat = active[index]
        uses.append(upcoming[flat])
        upcoming[flat] = index
    return uses[::-1], upcoming


Rerank = Callable[[int, Array], None]


def _lru(trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int) -> Rerank:
    def rerank(index: int, flat: Array) -> None:
        rank[flat] = index + 1

    return rerank


def _lfu(trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int) -> Rerank:
    def rerank(index: int, flat: Array) -> None:
        rank[flat] += 1

    return rerank


def _lfu_age(
    trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int
) -> Rerank:
    counts = np.zeros_like(rank)

    def rerank(index: int, flat: Array) -> None:
        counts[rank == 0.0] = 0.0  # started anew
        counts[flat] += 1
        rank[flat] = (
            np.log(counts[flat]) - index * math.log(AGEING) + OFFSET
        )  # a logarithm orders alike at any time

    return rerank


def _mrs(trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int) -> Rerank:
    base = np.arange(trace.layers)[:, None] * trace.experts
    most = min(2 * trace.top_k, trace.experts)

    def rerank(index: int, flat: Array) -> None:
        rows = steps[index].rows
        ids = trace.ids[rows]
        if trace.scores is not None:
            ids = np.argpartition(trace.scores[rows], -most, axis=2)[..., -most:]
            gains = np.take_along_axis(trace.scores[rows], ids, axis=2).astype(np.float64)
        else:
            gains = np.ones(ids.shape) if trace.weights is None else trace.weights[rows].astype(np.float64)
        # S x 2^step only ever grows, so its logarithm needs no decay of everybody else's.
        rank[rank == 0.0] = -np.inf
        np.logaddexp2.at(rank, base + ids, np.log2(np.maximum(gains, 1e-9)) + index + OFFSET)
        rank[rank == -np.inf] = 0.0

    return rerank


def _random(
    trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int
) -> Rerank:
    generator = np.random.default_rng(seed)

    def rerank(index: int, flat: Array) -> None:
        rank[:] = generator.random(len(rank))

    return rerank


def _belady(
    trace: Trace, steps: Sequence[Forward], active: Sequence[Array], rank: Array, seed: int
) -> Rerank:
    uses, first = next_uses(active, len(rank))
    rank[:] = -first

    def rerank(index: int, flat: Array) -> None:
        rank[flat] = -uses[index]

    return rerank


_RANKS = {
    "lru": _lru,
    "lfu": _lfu,
    "lfu-age": _lfu_age,
    "mrs": _mrs,
    "random": _random,
    "belady": _belady,
    "belady-bypass": _belady,
}
