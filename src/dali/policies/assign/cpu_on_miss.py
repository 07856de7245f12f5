"""Experts that are on the accelerator run there, all others on the CPU, and nothing is fetched: Fiddler's
decode (arXiv 2402.07033) without its exception for many tokens. An expert still in flight is a miss."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class Policy:
    """`cpu_on_miss`."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        active = [expert for expert, tokens in enumerate(workload) if tokens]
        residents = [expert for expert in active if expert in view.resident]
        landed = [e for e in view.landing() if workload[e] and view.in_flight[e] <= 0]
        here = {*residents, *landed}
        return LayerPlan(tuple(e for e in active if e not in here), (*residents, *landed), ())
