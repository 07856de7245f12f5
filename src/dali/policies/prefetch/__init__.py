"""Prefetch: which experts of a later MoE layer to copy while the link would idle.

The runtime computes the predictions a policy asks for (its `predictor`, `distance` and `depth`, plain data) by running the
later layers' own routers on predicted gate inputs, and counts live tokens per expert. A policy that predicts from history
instead has no `predictor` and overrides `foresee`. Either way `plan` gets the forecasts and says what to fetch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import ResidencyView
from dali.policies.signals import Signals

PREDICTORS = ("next_gate", "residual", "ridge")  # those of runtime.predict


class Forecast(NamedTuple):
    """A later MoE layer: the tokens it is expected to route to each expert (or any numbers that rank them, 0 for those not
    expected), its experts, and the seconds the link has before it starts, demanded copies taken off."""

    layer: int
    workload: Sequence[float]
    view: ResidencyView
    idle: float


class PrefetchPolicy:
    """The busiest experts that are not there yet: DALI, arXiv 2602.03495.

    `distance`: how many MoE layers ahead; `depth`: for how many in a row from there on it wants a prediction.
    `count`: the paper's p, its number of experts; None fetches what the link's idle time holds, to the nearest (ours).
    Prefetched experts go to scratch slots and evict nothing.
    """

    predictor: ClassVar[str | None] = None  # how the runtime predicts the later layer's gate input
    depth: int = 1

    def __init__(self, distance: int = 1, count: int | None = None) -> None:
        self.distance = distance
        self.count = count

    def foresee(
        self, layer: int, workload: Sequence[int], signals: Signals | None = None
    ) -> Sequence[tuple[int, Sequence[float]]]:
        """Where `predictor` is None: the policy's own predictions as (later layer, expected workload), the nearest layer first.
        Called once a layer and step, after the cache policy has observed it."""
        return ()

    def plan(self, forecasts: Sequence[Forecast], costs: ExpertCosts) -> list[tuple[int, int]]:
        """(layer, expert) to fetch, in copy order: the nearest layer's first, while the link is idle."""
        chosen: list[tuple[int, int]] = []
        for layer, workload, view, idle in forecasts:
            room = replace(view, slots=view.slots - len(chosen)) if chosen else view
            left = idle - len(chosen) * costs.link_contended
            chosen += [(layer, expert) for expert in self.choose(workload, room, costs, left)]
        return chosen

    def choose(
        self, predicted: Sequence[float], view: ResidencyView, costs: ExpertCosts, idle: float
    ) -> tuple[int, ...]:
        """Experts of one layer to fetch, in copy order: residents and those in flight skipped, ties to the lower id."""
        # Half a copy late is soon enough: the layer's other absent experts keep the CPU busy meanwhile.
        count = int(idle / costs.link_contended + 0.5) if self.count is None else self.count
        count = min(count, view.slots - len(view.in_flight))
        if count <= 0:
            return ()
        resident, in_flight = view.resident, view.in_flight
        wanted = [e for e, busy in enumerate(predicted) if busy and e not in resident and e not in in_flight]
        wanted.sort(key=predicted.__getitem__, reverse=True)  # stable: ties stay in id order
        return tuple(wanted[:count])
