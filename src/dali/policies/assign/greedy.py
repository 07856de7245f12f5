"""Greedy assignment: DALI, arXiv 2602.03495, Algorithm 1, for the 0-1 program min max(T_gpu, T_cpu).

t_gpu(w) = max(transfer, compute); the transfer is 0 for an expert that is there already (resident, or
prefetched and landed), else the constant time of one copy over the idle link. Active experts are taken by
|t_gpu - t_cpu|, largest first; one goes to the accelerator when T_gpu + t_gpu <= T_cpu + t_cpu.

Where the paper is silent: ties in the order go to the lower id; copies are queued in the order of decision.
Where it errs: its memory limit is never enforced, so fetched experts pass through recycling scratch slots
here, and without a slot only experts that have one run on the accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView


class Policy:
    """`greedy`, the paper's."""

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        return greedy(workload, view, costs)


def greedy(workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> LayerPlan:
    """Algorithm 1 on one layer's workload."""
    resident, in_flight, slots = view.resident, view.in_flight, view.slots
    cpu_seconds, compute, transfer = costs.cpu, costs.gpu, costs.link
    rows = []
    for expert, tokens in enumerate(workload):
        if tokens:
            t_cpu, t_gpu = cpu_seconds[tokens], compute[tokens]
            here = expert in resident
            if not here and transfer > t_gpu and in_flight.get(expert, 1.0) > 0:
                t_gpu = transfer
            gap = t_cpu - t_gpu
            rows.append((gap if gap < 0 else -gap, expert, t_cpu, t_gpu, here))
    rows.sort()

    cpu_total = gpu_total = 0.0
    cpu, residents, fetch, landing = [], [], [], []
    for _, expert, t_cpu, t_gpu, here in rows:
        if gpu_total + t_gpu <= cpu_total + t_cpu and (here or slots or expert in in_flight):
            gpu_total += t_gpu
            if here:
                residents.append(expert)
            elif expert in in_flight:
                landing.append(expert)
            else:
                fetch.append(expert)
        else:
            cpu_total += t_cpu
            cpu.append(expert)
    landing.sort(key=lambda expert: (in_flight[expert], expert))
    return LayerPlan(tuple(cpu), (*residents, *landing, *fetch), tuple(fetch))
