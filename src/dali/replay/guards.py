"""The live runs' guards on replayed layers: what prefetches and swaps bring, and what their copies cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from dali.hardware.cost import ExpertCosts
from dali.policies import Policies
from dali.policies.cache import Swap
from dali.policies.guard import CopiedSwaps, Guard
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.residency import Residency

SAMPLE = 17  # one layer step in so many is planned again, as in a live run


class Guards:
    """`prefetch` and `swap` say what may go on; for a system that knows no guards both always may."""

    def __init__(
        self,
        policies: Policies,
        residency: Residency,
        costs: ExpertCosts,
        guarded: bool,
        predicts: bool,
        layers: int,
    ) -> None:
        self.prefetch, self.swap = Guard(), Guard()
        self.prefetches = self.swaps = 0  # copies that may still be on the link
        self._policies, self._residency, self._costs = policies, residency, costs
        self._guarded, self._predicts = guarded, predicts
        self._copied = [CopiedSwaps() for _ in range(layers)]
        self._steps = 0

    def allow(
        self, layer: int, swaps: list[Swap], fetched: Collection[int], view: ResidencyView
    ) -> list[Swap]:
        """The swaps that may be made now: while the guard rests or more than one copy is on the link, those that copy nothing."""
        if not self._guarded:
            return swaps
        if not self.swap.on or view.link_free > self._costs.link:
            swaps = [swap for swap in swaps if swap.load in fetched]
        for swap in swaps:
            self._copied[layer].note(swap, swap.load not in fetched)
        return swaps

    def settle(
        self,
        layer: int,
        workload: Sequence[int],
        view: ResidencyView,
        plan: LayerPlan,
        predict_seconds: float,
    ) -> None:
        """Now and then, judge prefetches and swaps by what this event shows."""
        if not self._guarded:
            return
        prefetches, swaps = self.prefetches, self.swaps
        if plan.fetch or not view.link_free:  # by the layer's end they have left the link
            self.prefetches = self.swaps = 0
        self._steps += 1
        if self._steps % SAMPLE:
            return
        idle = replace(view, link_free=0.0)
        seconds = self._makespan(layer, workload, idle)
        delay = (makespan(plan, workload, view, self._costs) - seconds) / max(prefetches + swaps, 1)
        waiting = self._residency.scratch(layer)
        if self._predicts:
            saved = 0.0
            if self.prefetch.on and waiting:
                others = {expert: due for expert, due in view.in_flight.items() if expert not in waiting}
                saved = self._makespan(layer, workload, replace(idle, in_flight=others)) - seconds
            self.prefetch.record(predict_seconds + delay * prefetches, saved)
        undone = self._copied[layer].undone(self._residency.residents[layer])
        if undone or not self.swap.on:
            saved = 0.0
            if self.swap.on:
                others = {e: due for e, due in view.in_flight.items() if e in waiting and e not in undone}
                saved = (
                    self._makespan(layer, workload, replace(idle, resident=undone, in_flight=others))
                    - seconds
                )
            self.swap.record(delay * swaps, saved)
            if not self.swap.on:
                self._copied = [CopiedSwaps() for _ in self._copied]

    def _makespan(self, layer: int, workload: Sequence[int], view: ResidencyView) -> float:
        plan = self._policies.assign.assign(layer, workload, view, self._costs)
        return makespan(plan, workload, view, self._costs)
