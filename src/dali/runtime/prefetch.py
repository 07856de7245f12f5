"""Prefetching for a later MoE layer: predict its routing, and fetch its busiest experts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dali.devices import COMPUTE
from dali.hardware.cost import ExpertCosts
from dali.kernels.expert import ExpertLayout
from dali.policies.decisions import Decisions
from dali.policies.guard import Guards
from dali.policies.plan import LayerPlan
from dali.policies.prefetch import Forecast
from dali.runtime.residency import Residency
from dali.telemetry import LayerCounters, Telemetry


class Predictor(Protocol):
    """Predicts a later layer's routing from this layer's gate input."""

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """(the later layer, its predicted ids [tokens, top_k], or those of n layers from there on [n x tokens, top_k]); None past
        the last layer."""
        ...

    def to(self, place: torch.device) -> Predictor:
        """The same with its own tensors there; routers are the model's."""
        ...


class Prefetcher:
    """Fetches ahead into scratch slots while its guard finds that it pays."""

    def __init__(
        self,
        decisions: Decisions,
        guards: Guards,
        predictor: Predictor | None,
        residency: Residency,
        costs: ExpertCosts,
        telemetry: Telemetry,
        modelled_seconds: Callable[[int], float],
    ) -> None:
        """`modelled_seconds(tokens)`: of one prediction, where the device's clock is virtual."""
        self._decisions = decisions
        self._guards = guards
        self._predictor = predictor
        self._residency = residency
        self.costs = costs  # that plans go by
        self._telemetry = telemetry
        self._modelled_seconds = modelled_seconds
        self.predict_seconds = 0.0  # of the present layer
        self.rests = False  # whatever its guard says

    @property
    def wanted(self) -> bool:
        """Whether a prediction is: there is a slot for what it names, and prefetching does not rest."""
        return not self.rests and self._guards.prefetch.on and self._residency.scratch_slots > 0

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """The later layer and its predicted ids, unless prefetching rests."""
        self.predict_seconds = 0.0
        if self._predictor is None or not self.wanted:
            return None
        started = time.perf_counter()
        predicted = self._predictor.predict(layer, hidden)
        self.predict_seconds = time.perf_counter() - started
        self._telemetry.predict_seconds += self.predict_seconds
        if self._telemetry.modelled:
            self.predict_seconds = 0.0 if predicted is None else self._modelled_seconds(len(hidden))
        if predicted is not None:
            device = self._residency.device
            device.charge(device.stream(COMPUTE), self.predict_seconds, "predict")
        return predicted

    def queue(
        self,
        layer: int,
        expected: Sequence[tuple[int, Sequence[float]]],
        period: float,
        layouts: Sequence[ExpertLayout],
    ) -> None:
        """Queue copies for later layers, whose expected workloads are given; `period`: seconds from layer to layer."""
        forecasts = []
        for target, workload in expected:
            view = self._residency.view(target)
            idle = max(period * (target - layer) - view.link_free, 0.0)
            forecasts.append(Forecast(target, workload, view, idle))
        free = self._residency.free_slots()
        for target, expert in self._decisions.prefetch(layer, forecasts, self.costs, free):
            if not self._residency.loans.holds(target, expert):  # its read would make others wait
                continue
            self._residency.fetch(target, expert)
            self._telemetry.layer(target).link_bytes += layouts[target].record_bytes
            self._guards.prefetches += 1

    def count(self, layer: int, workload: Sequence[int], plan: LayerPlan, counters: LayerCounters) -> None:
        """The layer's turn has come: count where its accelerator finds its experts, and what became of those fetched ahead."""
        waiting, used, late = self._residency.scratch(layer), 0, 0
        if waiting:
            used = sum([expert in plan.gpu for expert in waiting])
            late = sum([workload[expert] > 0 and expert not in plan.gpu for expert in waiting])
        counters.resident += len(plan.gpu) - len(plan.fetch) - used
        counters.prefetched += used
        counters.prefetch_used += used
        counters.prefetch_late += late
        counters.prefetch_wasted += len(waiting) - used - late
