"""Cache replacement on a live layer: apply the policy's swaps."""

from __future__ import annotations

from collections.abc import Sequence

from dali.policies.cache import Swap
from dali.policies.decisions import Decisions
from dali.policies.guard import Guards
from dali.policies.signals import Signals
from dali.runtime.residency import Residency
from dali.telemetry import LayerCounters


class Replacement:
    """Swaps residents as the cache policy says; swaps that need a copy wait for the guard's leave and an idle link."""

    def __init__(self, decisions: Decisions, guards: Guards, residency: Residency) -> None:
        self._decisions = decisions
        self._guards = guards
        self._residency = residency

    def swap_roles(
        self,
        layer: int,
        workload: Sequence[int],
        link_free: float,
        counters: LayerCounters,
        signals: Signals | None = None,
        none: bool = False,
    ) -> list[Swap]:
        """Apply the swaps whose expert sits in scratch, then free the layer's scratch. Returns the swaps that need a copy, of an
        expert in RAM, as far as a link that is busy for `link_free` seconds may be given any. `none`: no swap may be made,
        whatever the policy says."""
        residency = self._residency
        residents, scratch = residency.residents(layer), residency.scratch(layer)
        swaps = self._decisions.observe(
            layer, workload, residents, scratch, residency.unsettled(layer), signals, residency.residents
        )
        swaps = [
            swap
            for swap in swaps
            if not none and (swap.load in scratch or residency.loans.holds(layer, swap.load))
        ]
        swaps = self._guards.allow(layer, swaps, scratch, link_free)
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
        self._guards.swaps += len(swaps)
