"""What was decided in each layer's step, and what a device's streams did meanwhile: kept for those who ask why.

Nothing of it is kept unless somebody asks before the steps begin, and asking changes no decision and no result.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.reasons import Reason, reasons

if TYPE_CHECKING:  # a replay needs no torch, which devices import
    from dali.devices import Device
    from dali.devices.clock import Span

REMEMBERED = 20_000  # layers' steps: some 400 tokens of a model with 48 layers


@dataclass(slots=True)
class Note:
    """One layer's step: what it was to compute, what the planner saw and decided. `began`: seconds on the clock, when its experts
    began; `planned`: seconds they would take; `spans`: what ended from then until the next layer's experts began."""

    step: int
    layer: int
    workload: Sequence[int]
    view: ResidencyView
    plan: LayerPlan
    waiting: tuple[int, ...]  # fetched ahead
    costs: ExpertCosts  # by which it was planned
    began: float
    read: tuple[int, ...] = ()  # from disk
    spans: list[Span] = field(default_factory=list)

    def reasons(self) -> tuple[float, list[Reason]]:
        """Seconds as planned, and why each expert is where it is."""
        return reasons(self.plan, self.workload, self.view, self.waiting, self.costs)


class Journal:
    """The last layers' steps. `costs`: by which plans are made, until somebody corrects them. `device`: whose spans belong to
    them; None where there is none, as in a replay."""

    def __init__(self, costs: ExpertCosts, device: Device | None = None) -> None:
        self.costs = costs
        self.notes: deque[Note] = deque(maxlen=REMEMBERED)
        self.begun = 0  # steps so far, forgotten ones included
        self._device = device
        self._last = -1  # layer
        if device is not None:
            device.watch()

    def note(
        self,
        layer: int,
        workload: list[int],
        view: ResidencyView,
        plan: LayerPlan,
        waiting: Sequence[int],
        now: float,
    ) -> None:
        """A layer's step was planned; `waiting`: experts in scratch slots that wait for it."""
        self.gather()
        self.begun += layer <= self._last or not self.begun
        self._last = layer
        active = {expert for expert in (*plan.cpu, *plan.gpu) if expert in view.resident}
        seen = ResidencyView(active, dict(view.in_flight), view.slots, view.link_free)
        self.notes.append(
            Note(self.begun, layer, array("I", workload), seen, plan, tuple(waiting), self.costs, now)
        )

    def arrange(self, plan: LayerPlan, read: Sequence[int]) -> None:
        """Of the last note: the plan in the order in which its experts are carried out, those last that are `read` from disk."""
        self.notes[-1].plan, self.notes[-1].read = plan, tuple(read)

    def since(self, step: int) -> list[Note]:
        """The notes of steps after that one, with all that their streams did. For who lets no step run meanwhile."""
        self.gather(wait=True)
        return [note for note in self.notes if note.step > step]

    def gather(self, wait: bool = False) -> None:
        """Give the last note what has ended since; `wait`: also what is under way."""
        if self._device is not None and self.notes:
            self.notes[-1].spans += self._device.spans(wait)
