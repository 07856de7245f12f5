"""Assignment: which of a layer's active experts run on the CPU and which on the accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class AssignPolicy(Protocol):
    """Decides once per MoE layer and forward step, after the router."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        """A plan for MoE layer `layer` (0 is the first); `workload[e]` = live tokens routed to expert e."""
        ...
