"""FineMoE (first fMoE): maps of router probabilities of past tokens; the nearest one says which experts come next.

A token's map is found by its embedding for the first `distance` layers, then by its trajectory, its own probabilities so far.
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

Floats = NDArray[np.float32]
Nearest = tuple[NDArray[np.integer], Floats]  # each token's nearest map, and the cosine between them

STORED = 1000  # maps
DISTANCE = 6  # layers
TINY = 1e-12


class Maps:
    """Maps of past tokens, and what is known of the present step's."""

    def __init__(
        self, layers: int, experts: int, top_k: int, stored: int = STORED, distance: int = DISTANCE
    ) -> None:
        self.distance = distance
        self._layers, self._experts, self._top_k, self._stored = layers, experts, top_k, stored
        self._store: Floats = np.zeros((layers, stored, experts), dtype=np.float32)
        self._squares: Floats = np.zeros((layers, stored), dtype=np.float32)  # summed up to each row
        self._embeddings: Floats | None = None  # [stored, hidden], of length 1
        self._count = 0
        self._step_embeddings: Floats | None = None
        self._nearest: Nearest | None = None  # by trajectory, remembered until more is recorded
        self._complete = False
        self._begin(0)

    def begin(self, step: Step) -> None:
        self._begin(len(step.sequences), step.embeddings)

    def _begin(self, tokens: int, embeddings: NDArray[np.floating] | None = None) -> None:
        if self._complete:
            self._keep()
        self._complete = False
        self._step_embeddings = None if embeddings is None else _unit(embeddings)
        self._step = np.zeros((tokens, self._layers, self._experts), dtype=np.float32)
        self._dots = np.zeros((tokens, self._count), dtype=np.float32)
        self._own = np.zeros(tokens, dtype=np.float32)
        self._nearest = None

    def note(self, layer: int, workload: Sequence[int], signals: Signals | None) -> None:
        """A layer's probabilities, [tokens, experts]: the scores; where they are missing, the weights of the chosen experts;
        without `signals`, one row of the workload's shares."""
        if signals is None:
            rows = np.asarray([workload], dtype=np.float32) / max(sum(workload), 1)
        elif signals.scores is not None:
            rows = signals.scores.astype(np.float32)
        else:
            rows = np.zeros((len(signals.ids), self._experts), dtype=np.float32)
            even = np.full(signals.ids.shape, 1 / self._top_k)
            weights = even if signals.weights is None else signals.weights
            rows[np.arange(len(rows))[:, None], signals.ids] = weights
        if self._complete or len(rows) != len(self._step):
            self._begin(len(rows))
        self._step[:, layer] = rows
        self._dots += rows @ self._store[layer, : self._dots.shape[1]].T
        self._own += (rows * rows).sum(axis=1)
        self._nearest = None
        self._complete = layer == self._layers - 1

    def by_trajectory(self, layer: int) -> Nearest | None:
        """After `layer`: each token's nearest map and the cosine of their first layers; None where none is stored."""
        if self._nearest is None and self._dots.size:
            squares = self._squares[layer, : self._dots.shape[1]]
            self._nearest = _best(self._dots / np.sqrt(np.maximum(self._own[:, None] * squares, TINY)))
        return self._nearest

    def by_embedding(self) -> Nearest | None:
        """Each token's map with the nearest embedding and their cosine; None where embeddings or maps are missing."""
        if self._step_embeddings is None or self._embeddings is None or not self._count:
            return None
        return _best(self._step_embeddings @ self._embeddings[: self._count].T)

    def expected(self, nearest: NDArray[np.integer], cosines: Floats, layer: int) -> list[float]:
        """Summed probabilities of `layer`'s experts, of each token those of the smallest set whose probabilities add up to
        1 - cosine, at least top_k of them."""
        rows = self._store[layer, nearest]  # [tokens, experts]
        order = np.argsort(-rows, axis=1, kind="stable")
        every = np.arange(len(rows))[:, None]
        falling = rows[every, order]
        left = np.maximum(np.minimum(1 - cosines, 1), 0)[:, None]
        wanted = np.cumsum(falling, axis=1) - falling < left
        wanted[:, : self._top_k] = True
        rows[every, order] = falling * wanted
        expected: list[float] = rows.sum(axis=0).tolist()
        return expected

    def chances(self, layer: int) -> NDArray[np.float64]:
        """After `layer`: mean probabilities [layers, experts] of the tokens' nearest maps; 1 where none is stored."""
        found = self.by_trajectory(layer)
        if found is None:
            return np.ones((self._layers, self._experts))
        maps, tokens = np.unique(found[0], return_counts=True)
        return np.tensordot(tokens / tokens.sum(), self._store[:, maps].astype(float), axes=(0, 1))

    def _keep(self) -> None:
        """Store the step's maps; when the store is full each replaces the one most like it, by embedding and trajectory."""
        free = min(self._stored - self._count, len(self._step))
        slots = np.arange(self._count, self._count + free)
        rest = np.arange(free, len(self._step))
        if len(rest) and self._dots.size:
            squares = self._squares[-1, : self._dots.shape[1]]
            alike = self._dots[rest] / np.sqrt(np.maximum(self._own[rest, None] * squares, TINY))
            if self._step_embeddings is not None and self._embeddings is not None:
                share = min(self.distance / self._layers, 1.0)
                known = self._embeddings[: self._dots.shape[1]]
                alike = share * (self._step_embeddings[rest] @ known.T) + (1 - share) * alike
            slots = np.concatenate([slots, alike.argmax(axis=1)])
        step = self._step[: len(slots)]
        self._store[:, slots] = step.transpose(1, 0, 2)
        self._squares[:, slots] = np.cumsum((step * step).sum(axis=2), axis=1).T
        if self._step_embeddings is not None:
            if self._embeddings is None:
                self._embeddings = np.zeros((self._stored, self._step_embeddings.shape[1]), dtype=np.float32)
            self._embeddings[slots] = self._step_embeddings[: len(slots)]
        self._count += free


def _unit(rows: NDArray[np.floating]) -> Floats:
    unit = rows.astype(np.float32)
    unit /= np.sqrt(np.maximum((unit * unit).sum(axis=1, keepdims=True), TINY))
    return unit


def _best(cosines: Floats) -> Nearest:
    nearest = cosines.argmax(axis=1)
    return nearest, cosines[np.arange(len(cosines)), nearest]


class Cache(PooledCache):
    """Evicts the least probability x visits of all layers' experts."""

    signals = frozenset({"scores"})

    def __init__(self, layers: int, experts: int, capacity: int, seed: int, maps: Maps) -> None:
        super().__init__(layers, experts, capacity, seed)
        self._maps = maps
        self._visits = np.zeros((layers, experts))

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        self._maps.note(layer, workload, signals)
        self._visits[layer] += np.asarray(workload) > 0
        if not any(workload[expert] for expert in fetched):
            return []
        ranks = self._maps.chances(layer) * self._visits
        return self.stay(layer, ranks, workload, resident, fetched, protected)


class Prefetch(PrefetchPolicy):
    """The expected experts of the layer the maps' `distance` ahead; after the first layer also of those between, by embedding.
    Each layer queues what the link's idle time before the next one holds."""

    def __init__(self, layers: int, maps: Maps) -> None:
        super().__init__()
        self._layers = layers
        self._maps = maps
        self._layer = 0

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        maps, forecasts, far = self._maps, [], layer + self._maps.distance
        self._layer = layer
        if layer == 0 and (found := maps.by_embedding()) is not None:
            between = range(1, min(far, self._layers))
            forecasts += [(later, maps.expected(*found, later)) for later in between]
        if far < self._layers and (found := maps.by_trajectory(layer)) is not None:
            forecasts.append((far, maps.expected(*found, far)))
        return forecasts

    def plan(self, forecasts: Sequence[Forecast], costs: ExpertCosts) -> list[tuple[int, int]]:
        soon = []
        for forecast in forecasts:
            queued = forecast.view.link_free
            one_layer = (forecast.idle + queued) / (forecast.layer - self._layer)
            soon.append(forecast._replace(idle=max(one_layer - queued, 0.0)))
        return super().plan(soon, costs)


def policies(layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies:
    maps = Maps(layers, experts, top_k)
    cache = Cache(layers, experts, capacity, seed, maps)
    return Policies(create("assign", "gpu"), Prefetch(layers, maps), cache, maps.begin)


SYSTEM = System(
    name="finemoe",
    title="FineMoE",
    create=policies,
    source="FineMoE (first named fMoE), EuroSys 2026, arXiv 2502.05370; github.com/IntelliSys-Lab/FineMoE-EuroSys26",
    differs=(
        "The code stops one expert short of the set whose probabilities add up to 1 - similarity, and queues all later layers; "
        "this follows the paper, one layer at a time, 6 ahead as the code's demonstration has it. Experts found by embedding are "
        "fetched from the second layer on, as no decision precedes the first."
    ),
    signals=frozenset({"scores", "embeddings"}),
)
