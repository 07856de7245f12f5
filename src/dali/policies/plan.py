"""What an assignment policy is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(
    slots=True
)  # not frozen, which would make making one several times as slow: two are made a layer's step
class ResidencyView:
    """One layer's experts as the planner finds them.

    `resident`: on the accelerator, to stay. `in_flight`: expert -> seconds until its copy has landed in a
    scratch slot, 0 when it already has. `slots`: scratch slots this layer may use, those the experts in
    flight hold included; they recycle within the layer, and with none only residents may run on the
    accelerator. `link_free`: seconds until copies for other layers leave the link.
    """

    resident: Set[int]
    in_flight: Mapping[int, float] = field(default_factory=dict)
    slots: int = 0
    link_free: float = 0.0

    def landing(self) -> list[int]:
        """Experts in flight in the order they land, ties to the lower id."""
        return sorted(self.in_flight, key=lambda expert: (self.in_flight[expert], expert))


class LayerPlan(NamedTuple):
    """Where a layer's active experts run; each is in exactly one of `cpu` and `gpu`.

    `cpu`: in the order they are computed. `gpu`: in launch order: residents, then experts in flight as they
    land, then the fetched ones in copy order. `fetch`: the experts to copy into scratch slots, in copy order.
    """

    cpu: tuple[int, ...]
    gpu: tuple[int, ...]
    fetch: tuple[int, ...]
