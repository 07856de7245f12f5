"""Guards that stop an activity (prefetches, swaps) while it costs more than it brings; live runs and replays share them.

A guard is handed seconds once a step and knows no clock. Each window of steps is judged as a whole.
Hysteresis: a trial must bring a margin more than it costs to stay on, and what is on is stopped only when it
costs a margin more than it brings. After a rest a new trial begins; each failed trial doubles the rest, so an
activity that never pays soon costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import replace

from dali.hardware.cost import ExpertCosts
from dali.policies.cache import Swap
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView

SAMPLE = 17  # one layer step in so many tells the guards what prefetches and swaps bring; rarely divides a layer count

Assign = Callable[[int, Sequence[int], ResidencyView, ExpertCosts], LayerPlan]


class Guard:
    """`on` says whether to go ahead. Lengths are in steps; `margin` is a fraction of the cost."""

    def __init__(
        self, window: int = 32, margin: float = 0.1, rest: int = 64, longest_rest: int = 4096
    ) -> None:
        self.window = window
        self.margin = margin
        self.rest = rest
        self.longest_rest = longest_rest
        self.on = True
        self._trial = True
        self._next_rest = rest
        self._resting = 0
        self._steps = 0
        self._cost = self._benefit = 0.0

    def note(self, cost: float, benefit: float) -> None:
        """One step's cost and benefit in seconds; they are ignored while the activity rests."""
        if not self.on:
            self._resting -= 1
            if self._resting == 0:
                self.on = self._trial = True
            return
        self._cost += cost
        self._benefit += benefit
        self._steps += 1
        if self._steps < self.window:
            return
        bar = self._cost * (1 + self.margin if self._trial else 1 - self.margin)
        if self._benefit >= bar:
            self._trial = False
            self._next_rest = self.rest
        else:
            self.on = False
            self._resting = self._next_rest
            self._next_rest = min(2 * self._next_rest, self.longest_rest)
        self._steps = 0
        self._cost = self._benefit = 0.0


class CopiedSwaps:
    """A layer's swaps that were paid for with a copy: what they bring lasts, so a guard has to ask what would be resident now if
    none of them had been made since its trial began."""

    def __init__(self) -> None:
        self._instead: dict[int, int] = {}  # of an expert copied in, the one that would still be there

    def note(self, swap: Swap, copied: bool) -> None:
        undone = self._instead.pop(swap.evict, swap.evict)
        if copied:
            self._instead[swap.load] = undone

    def undone(self, resident: Set[int]) -> set[int]:
        """The residents without them; empty where none was made."""
        return {*(resident - self._instead.keys()), *self._instead.values()} if self._instead else set()


class Guards:
    """Both guards over a model's layers: `prefetch` and `swap` say what may go on.

    Prefetches and swaps bring what experts being here gains on an idle link; they cost what the step loses to their copies under
    way, as no demanded one can start before those. Now and then a layer is planned again to see it.
    """

    def __init__(
        self, assign: Assign, costs: ExpertCosts, layers: int, guarded: bool, predicts: bool
    ) -> None:
        """`guarded`: whether the guards may rest anything at all; `predicts`: whether there are predictions to rest."""
        self.prefetch, self.swap = Guard(), Guard()
        self.prefetches = self.swaps = 0  # copies that may still be on the link
        self._assign, self.costs = assign, costs
        self.guarded, self.predicts = guarded, predicts
        self._copied = [CopiedSwaps() for _ in range(layers)]
        self._steps = 0

    def allow(
        self, layer: int, swaps: Sequence[Swap], fetched: Collection[int], link_free: float
    ) -> Sequence[Swap]:
        """The swaps that may be made now: while the guard rests or more than one copy is on the link, those that copy nothing."""
        if not self.guarded or not swaps:
            return swaps
        if not self.swap.on or link_free > self.costs.link:
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
        waiting: Collection[int],
        residents: Set[int],
        predict_seconds: float,
    ) -> None:
        """Judge prefetches and swaps by what this layer's step shows. `waiting`: experts in scratch slots that wait for it;
        `predict_seconds`: of its prediction."""
        prefetches, swaps = self.prefetches, self.swaps
        if plan.fetch or not view.link_free:  # by the layer's end they have left the link
            self.prefetches = self.swaps = 0
        self._steps += 1
        if self._steps % SAMPLE or not self.guarded:
            return
        idle = replace(view, link_free=0.0)
        seconds = (
            self._makespan(layer, workload, idle)
            if view.link_free
            else makespan(plan, workload, idle, self.costs)
        )
        delay = (makespan(plan, workload, view, self.costs) - seconds) / max(prefetches + swaps, 1)
        if self.predicts:
            saved = 0.0
            if self.prefetch.on and waiting:
                others = {expert: due for expert, due in view.in_flight.items() if expert not in waiting}
                saved = self._makespan(layer, workload, replace(idle, in_flight=others)) - seconds
            self.prefetch.note(predict_seconds + delay * prefetches, saved)
        undone = self._copied[layer].undone(residents)
        if undone or not self.swap.on:
            saved = 0.0
            if self.swap.on:
                others = {e: due for e, due in view.in_flight.items() if e in waiting and e not in undone}
                without = replace(idle, resident=undone, in_flight=others)
                saved = self._makespan(layer, workload, without) - seconds
            self.swap.note(delay * swaps, saved)
            if not self.swap.on:
                self._copied = [CopiedSwaps() for _ in self._copied]

    def _makespan(self, layer: int, workload: Sequence[int], view: ResidencyView) -> float:
        return makespan(self._assign(layer, workload, view, self.costs), workload, view, self.costs)


class Period:
    """`seconds`: the mean time from one layer's start to the next one's, which tells how long the link has until then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def start(self, layer: int, now: float) -> None:
        """A layer starts `now`."""
        if layer:  # from the last layer to the first there is more than a layer
            since = now - self._started
            self.seconds = since if self.seconds == 0.0 else 0.9 * self.seconds + 0.1 * since
        self._started = now
