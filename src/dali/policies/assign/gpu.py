"""Every expert on the accelerator, absent ones fetched first: the on-demand loading of most offloading
systems. Without a scratch slot the absent ones are left to the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class Policy:
    """`gpu`."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return all_gpu(workload, view, costs)


def all_gpu(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> LayerPlan:
    """Copies go in order of compute time, longest first: the last one to land then leaves the least to do."""
    active = [expert for expert, tokens in enumerate(workload) if tokens]
    residents = [expert for expert in active if expert in view.resident]
    landing = [expert for expert in view.landing() if workload[expert]]
    absent = [expert for expert in active if expert not in view.resident and expert not in view.in_flight]
    if not view.slots:
        return LayerPlan(tuple(absent), (*residents, *landing), ())
    absent.sort(key=lambda expert: -costs.gpu[workload[expert]])
    return LayerPlan((), (*residents, *landing, *absent), tuple(absent))
