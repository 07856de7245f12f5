"""Cache replacement on a live layer: apply the policy's swaps, and see whether they pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dali.policies.cache import CachePolicy, Swap
from dali.policies.guard import CopiedSwaps, Guard
from dali.policies.plan import ResidencyView
from dali.policies.signals import Signals
from dali.runtime.residency import Residency
from dali.telemetry import LayerCounters


class Replacement:
    """Swaps residents as `policy` says; swaps that need a copy wait for the guard's leave and an idle link."""

    def __init__(self, policy: CachePolicy, residency: Residency, layers: int) -> None:
        self._policy = policy
        self._residency = residency
        self._copied = [CopiedSwaps() for _ in range(layers)]
        self.guard = Guard()
        self.queued = 0  # copies that may still be on the link

    def settle(
        self, layer: int, view: ResidencyView, delay: float, saved: Callable[[ResidencyView], float]
    ) -> None:
        """Tell the guard what a sampled step shows: the `delay` in seconds that swap copies cause demanded ones, against what the
        layer's copied swaps save: `saved(view)` is the time a view without them costs."""
        undone, gain = self._copied[layer].undone(self._residency.residents(layer)), 0.0
        if self.guard.on:
            if not undone:
                return
            waiting = self._residency.scratch(layer)
            others = {e: left for e, left in view.in_flight.items() if e in waiting and e not in undone}
            gain = saved(replace(view, resident=undone, in_flight=others))
        self.guard.record(delay, gain)
        if not self.guard.on:
            self._copied = [CopiedSwaps() for _ in self._copied]

    def swap_roles(
        self,
        layer: int,
        workload: Sequence[int],
        idle: bool,
        counters: LayerCounters,
        signals: Signals | None = None,
    ) -> list[Swap]:
        """Apply the swaps whose expert sits in scratch, then free the layer's scratch. Returns the swaps that need a copy, which
        are made only while the link is `idle`."""
        residency = self._residency
        residents, scratch = residency.residents(layer), residency.scratch(layer)
        swaps = self._policy.observe(layer, workload, residents, scratch, residency.unsettled(layer), signals)
        if not (self.guard.on and idle):
            swaps = [swap for swap in swaps if swap.load in scratch]
        counters.swaps += len(swaps)
        for swap in swaps:
            self._copied[layer].note(swap, swap.load not in scratch)
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
