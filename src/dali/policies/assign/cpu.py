"""Every expert on the CPU: llama.cpp's --cpu-moe."""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class Policy:
    """`cpu`."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return all_cpu(workload)


def all_cpu(workload: Sequence[int]) -> LayerPlan:
    return LayerPlan(tuple(expert for expert, tokens in enumerate(workload) if tokens), (), ())
