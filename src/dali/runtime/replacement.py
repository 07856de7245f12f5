"""Cache replacement on a live layer: apply the policy's swaps, and see whether they pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dali.hardware.cost import ExpertCosts
from dali.policies.assign import AssignPolicy
from dali.policies.cache import CachePolicy, Swap
from dali.policies.guard import Guard
from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView
from dali.policies.signals import Signals
from dali.runtime.residency import Residency
from dali.runtime.telemetry import LayerCounters


class Replacement:
    """Swaps residents as `policy` says; swaps that need a copy wait for the guard's leave."""

    def __init__(
        self, policy: CachePolicy, assign: AssignPolicy, residency: Residency, costs: ExpertCosts, layers: int
    ) -> None:
        self._policy = policy
        self._assign = assign
        self._residency = residency
        self._costs = costs
        self._before: list[set[int]] = [set() for _ in range(layers)]  # residents before the last swaps
        self.guard = Guard()
        self.queued = 0  # copies that may still be on the link

    def settle(
        self, layer: int, workload: Sequence[int], view: ResidencyView, seconds: float, delay: float
    ) -> None:
        """Tell the guard what a sampled step shows: what the layer's last swaps save of its makespan, which is `seconds` with
        them, against the `delay` in seconds that swap copies cause demanded ones."""
        if not self.guard.on:
            self.guard.record(0.0, 0.0)
            return
        before = self._before[layer]
        if not before:
            return
        waiting = self._residency.scratch(layer)
        others = {
            expert: left
            for expert, left in view.in_flight.items()
            if expert in waiting and expert not in before
        }
        without = replace(view, resident=before, in_flight=others)
        plan = self._assign.assign(layer, workload, without, self._costs)
        self.guard.record(delay, makespan(plan, workload, without, self._costs) - seconds)

    def swap_roles(
        self, layer: int, workload: Sequence[int], counters: LayerCounters, signals: Signals | None = None
    ) -> list[Swap]:
        """Apply the swaps whose expert sits in scratch, then free the layer's scratch. Returns the swaps that need a copy."""
        residency = self._residency
        residents, scratch = residency.residents(layer), residency.scratch(layer)
        swaps = self._policy.observe(layer, workload, residents, scratch, residency.unsettled(layer), signals)
        if not self.guard.on:
            swaps = [swap for swap in swaps if swap.load in scratch]
        if swaps:
            self._before[layer] = set(residents)
            counters.swaps += len(swaps)
        for swap in swaps:
            if swap.load in scratch:
                residency.swap(layer, *swap)
        for expert in residency.scratch(layer) if scratch else ():
            residency.release(layer, expert)
        return [swap for swap in swaps if swap.load not in scratch]

    def queue(self, layer: int, swaps: Sequence[Swap], counters: LayerCounters, record_bytes: int) -> None:
        """Queue the swaps that need a copy."""
        for swap in swaps:
            self._residency.swap(layer, *swap)
            counters.link_bytes += record_bytes
        self.queued += len(swaps)
