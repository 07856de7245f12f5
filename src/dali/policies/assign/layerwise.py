"""Whole layers by place: llama.cpp's --n-cpu-moe, the experts of the first MoE layers on the CPU, all others
on the accelerator."""

from __future__ import annotations

from collections.abc import Sequence

from dali.errors import UsageError, parameter
from dali.hardware.cost import ExpertCosts
from dali.policies.assign.cpu import all_cpu
from dali.policies.assign.gpu import all_gpu
from dali.policies.plan import LayerPlan, ResidencyView


class Policy:
    """`layerwise`; `cpu_layers`: how many MoE layers, from the first on, stay on the CPU."""

    def __init__(self, cpu_layers: int | None = None) -> None:
        if cpu_layers is None or cpu_layers < 0:
            given = "" if cpu_layers is None else f", not {cpu_layers}"
            raise UsageError(
                f"The assign policy layerwise needs a number of layers{given}.",
                f"Give {parameter('n_cpu_moe')} N.",
            )
        self.cpu_layers = cpu_layers

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return all_cpu(workload) if layer < self.cpu_layers else all_gpu(workload, view, costs)
