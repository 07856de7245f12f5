"""MoE-Infinity: the nearest stored request says which experts come next, for prefetching and for the cache.

A request's activation matrix counts its tokens by layer and expert. It is compared with those of past requests by the mean
cosine of its rows, those still empty left out. A request has ended when a step does not hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.cache import Swap
from dali.policies.prefetch import Forecast, PrefetchPolicy
from dali.policies.signals import Signals, Step
from dali.systems import System
from dali.systems._pool import PooledCache

Matrix = NDArray[np.float64]  # [layers, experts]

STORED = 128  # requests; the oldest gives way
LOOK_AHEAD = 4  # layers
EPSILON = 1e-8


class History:
    """Activation matrices of present and past requests."""

    def __init__(self, layers: int, experts: int, stored: int = STORED) -> None:
        self._layers, self._experts = layers, experts
        self._past = np.zeros((layers, stored, experts))  # rows of length 1, or empty
        self._chances = np.zeros((stored, layers, experts))  # rows of sum 1, or empty
        self._count = self._next = 0
        self._requests: list[int] = []  # the present ones
        self._matrices = np.zeros((0, layers, experts))  # of each of them
        self._cosines = np.zeros((0, layers, stored))
        self._owners = np.zeros(0, dtype=np.int64)  # the place of each token's request among the present ones
        self._expected: Matrix | None = None  # remembered until more is recorded

    def begin(self, step: Step) -> None:
        self._hold(step.sequences.tolist())

    def _hold(self, owners: list[int]) -> None:
        """Make the tokens' owners the present requests."""
        present = set(owners)
        for place in sorted(range(len(self._requests)), key=self._requests.__getitem__):
            if self._requests[place] not in present:
                self._store(self._matrices[place])
        if present != set(self._requests):
            kept = [place for place, request in enumerate(self._requests) if request in present]
            new = list(dict.fromkeys(owner for owner in owners if owner not in self._requests))
            self._requests = [self._requests[place] for place in kept] + new
            self._matrices = np.concatenate(
                [self._matrices[kept], np.zeros((len(new), *self._matrices.shape[1:]))]
            )
            self._cosines = np.concatenate(
                [self._cosines[kept], np.zeros((len(new), *self._cosines.shape[1:]))]
            )
        places = {request: place for place, request in enumerate(self._requests)}
        self._owners = np.array([places[owner] for owner in owners])
        self._expected = None

    def note(self, layer: int, workload: Sequence[int], signals: Signals | None) -> None:
        """Count a layer's routing; without `signals` all of it as one request's, the step's first."""
        if not self._requests:
            self._hold([0])
        tokens = np.zeros((len(self._requests), self._experts))
        if signals is None:
            tokens[self._owners[0]] = workload
        else:
            alone = len(self._owners) != len(signals.ids)  # nobody says whose the tokens are
            owners = np.zeros(len(signals.ids), dtype=np.int64) if alone else self._owners
            places = owners[:, None] * self._experts + signals.ids
            tokens += np.bincount(places.ravel(), minlength=tokens.size).reshape(tokens.shape)
        rows = self._matrices[:, layer]
        rows += tokens
        lengths = np.maximum(np.sqrt((rows * rows).sum(axis=1, keepdims=True)), EPSILON)
        self._cosines[:, layer, : self._count] = rows @ self._past[layer, : self._count].T / lengths
        self._expected = None

    def expected(self) -> Matrix:
        """The share of tokens that goes to each (layer, expert), summed over the present requests, each as in the past one
        nearest to it (ties: the lower slot); while none is stored, as in itself so far."""
        if self._expected is None:
            begun = self._matrices.any(axis=(1, 2))
            if self._count:  # a request's rows that are still empty have a cosine of 0
                nearest = self._cosines[begun, :, : self._count].sum(axis=1).argmax(axis=1)
                self._expected = self._chances[nearest].sum(axis=0)
            else:
                self._expected = _shares(self._matrices[begun]).sum(axis=0)
        return self._expected

    def _store(self, matrix: Matrix) -> None:
        slot = self._next
        self._past[:, slot] = matrix / np.maximum(np.sqrt((matrix**2).sum(axis=1, keepdims=True)), EPSILON)
        self._chances[slot] = _shares(matrix)
        self._next = (slot + 1) % len(self._chances)
        self._count = min(self._count + 1, len(self._chances))
        lengths = np.maximum(np.sqrt((self._matrices**2).sum(axis=2)), EPSILON)
        self._cosines[:, :, slot] = (self._past[:, slot] * self._matrices).sum(axis=2) / lengths


def _shares(matrix: Matrix) -> Matrix:
    shares: Matrix = matrix / np.maximum(matrix.sum(axis=-1, keepdims=True), 1)
    return shares


class Cache(PooledCache):
    """Evicts the least (p + epsilon) (1 - l / L) of all layers' experts, with p the expected share of tokens and l the layer."""

    signals = frozenset({"ids"})

    def __init__(self, layers: int, experts: int, capacity: int, seed: int, history: History) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._history = history
        self._decay = 1 - np.arange(layers)[:, None] / layers

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        self._history.note(layer, workload, signals)
        if not any(workload[expert] for expert in fetched):
            return []
        ranks = (self._history.expected() + EPSILON) * self._decay
        return self.stay(layer, ranks, workload, resident, fetched, protected)


class Prefetch(PrefetchPolicy):
    """Expected experts of the next layers by p (1 - (i - l) / L), highest first, while the link is idle before the next layer:
    then the queue is made anew."""

    depth = LOOK_AHEAD

    def __init__(self, layers: int, history: History) -> None:
        super().__init__()
        self._layers = layers
        self._history = history

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        ahead = range(layer + 1, min(layer + 1 + self.depth, self._layers))
        if not ahead:
            return ()
        expected = self._history.expected()
        return [(later, (expected[later] * (1 - (later - layer) / self._layers)).tolist()) for later in ahead]

    def plan(self, forecasts: Sequence[Forecast], costs: ExpertCosts) -> list[tuple[int, int]]:
        room = int(forecasts[0].idle / costs.link_contended) if forecasts else 0
        if not room:
            return []
        queue = [
            (-priority, order, expert)
            for order, (_, priorities, view, _) in enumerate(forecasts)
            for expert, priority in enumerate(priorities)
            if priority and expert not in view.resident and expert not in view.in_flight
        ]
        chosen: list[tuple[int, int]] = []
        for _, order, expert in sorted(queue):
            layer, _, view, _ = forecasts[order]
            if len(chosen) < view.slots - len(view.in_flight):
                chosen.append((layer, expert))
                if len(chosen) == room:
                    break
        return chosen


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    history = History(layers, experts)
    cache = Cache(layers, experts, capacity, seed, history)
    return Policies(create("assign", "gpu"), Prefetch(layers, history), cache, history.begin)


SYSTEM = System(
    name="moe-infinity",
    title="MoE-Infinity",
    create=policies,
    source="MoE-Infinity, arXiv 2401.14361; github.com/EfficientMoE/MoE-Infinity",
    differs=(
        "The code blanks the very rows it compares when it looks for the nearest matrix, and ranks its cache by further factors; "
        "this follows the paper. Matrices are stored as requests end, the oldest of 128 giving way, "
        "and the first request goes by its own. It looks at most 4 layers ahead and queues no more than the link's idle time "
        "holds."
    ),
)
