"""A minimal engine: steps through a system's policies with every residency rule checked, no times."""

from __future__ import annotations

import numpy as np

from dali.policies import Policies
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import Forecast
from dali.policies.signals import Signals, Step
from dali.replay.spans import timeline

SLOTS = 4


def step(*requests: int, prefill: bool = False, embeddings=None) -> Step:
    """A forward step with one token of each request."""
    return Step(np.array(requests), np.full(len(requests), prefill), embeddings)


class Player:
    """`log` takes every decision in order."""

    def __init__(self, policies: Policies, layers: int, experts: int, capacity: int, costs) -> None:
        self.policies, self.layers, self.experts, self.costs = policies, layers, experts, costs
        self.resident = [set(policies.cache.initial(layer)) for layer in range(layers)]
        self.waiting: list[set[int]] = [set() for _ in range(layers)]
        self.total = sum(map(len, self.resident))
        assert self.total <= layers * capacity
        self.log: list[object] = []

    def run(self, routing, requests, prefill: bool = False, seed: int = 0) -> None:
        """One step. `routing[layer]`: ids [tokens, top_k]."""
        rng = np.random.default_rng(seed)
        tokens = len(requests)
        if self.policies.begin is not None:
            self.policies.begin(step(*requests, prefill=prefill, embeddings=rng.random((tokens, 5))))
        for layer in range(self.layers):
            self._layer(layer, np.asarray(routing[layer]), rng)

    def _layer(self, layer: int, ids, rng) -> None:
        scores = rng.random((len(ids), self.experts))
        scores /= scores.sum(axis=1, keepdims=True)
        weights = np.take_along_axis(scores, ids, axis=1)
        signals = Signals(ids, weights, scores, rng.random((len(ids), 5)))
        workload = np.bincount(ids.ravel(), minlength=self.experts).tolist()
        resident = self.resident[layer]
        view = ResidencyView(frozenset(resident), dict.fromkeys(self.waiting[layer], 0.0), SLOTS)
        plan = self.policies.assign.assign(layer, workload, view, self.costs)
        timeline(plan, workload, view, self.costs)  # ValueError: no valid plan

        fetched = [expert for expert in plan.gpu if expert not in resident][-SLOTS:]
        swaps = self.policies.cache.observe(
            layer, workload, frozenset(resident), fetched, frozenset(), signals
        )
        for swap in swaps:
            donor = layer if swap.donor is None else swap.donor
            assert donor == layer or swap.load in fetched
            self.resident[donor].remove(swap.evict)
            assert swap.load not in resident
            resident.add(swap.load)
        assert sum(map(len, self.resident)) == self.total
        self.waiting[layer] = set()
        self.log += [plan, swaps, self._prefetch(layer, workload, signals, ids)]

    def _prefetch(self, layer: int, workload, signals, ids) -> list[tuple[int, int]]:
        policy = self.policies.prefetch
        if policy.predictor is None:
            expected = list(policy.foresee(layer, workload, signals))
        else:  # a perfect prediction would need the later ids; any will do here
            ahead = range(layer + policy.distance, layer + policy.distance + policy.depth)
            expected = [(later, workload) for later in ahead]
        taken = sum(map(len, self.waiting))
        forecasts = [
            Forecast(later, tokens, self._view(later, SLOTS - taken), 1e9)
            for later, tokens in expected
            if later < self.layers
        ]
        chosen = policy.plan(forecasts, self.costs)
        assert len(set(chosen)) == len(chosen)
        for later, expert in chosen:
            assert layer < later
            assert expert not in self.resident[later] | self.waiting[later]
            if sum(map(len, self.waiting)) < SLOTS:
                self.waiting[later].add(expert)
        return chosen

    def _view(self, layer: int, free: int) -> ResidencyView:
        waiting = self.waiting[layer]
        return ResidencyView(
            frozenset(self.resident[layer]), dict.fromkeys(waiting, 0.0), free + len(waiting)
        )
