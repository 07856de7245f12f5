"""Whether an accelerator is worth having: a token's modelled time with it, and on the CPU alone.

Within an accelerator's runtime no plan is slower, modelled, than all experts on the CPU: two_lane has compared them. But the
runtime itself costs launches, handovers and waits, for which a slow or small accelerator may not make up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

from dali.hardware.cost import CostModel, ExpertCosts
from dali.policies.assign.two_lane import two_lane
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView

MARGIN = 1.05  # times: what the CPU alone has to be faster, as residents are found more often than by chance
NEGLIGIBLE = 1e-6  # odds


Assign = Callable[[Sequence[int], ResidencyView, ExpertCosts], LayerPlan]


class Worth(NamedTuple):
    """A token's modelled seconds with an accelerator, and on the CPU alone."""

    beside: float
    alone: float


def weigh(
    costs: CostModel,
    layers: int,
    experts: int,
    top_k: int,
    slots: tuple[int, int],
    dense: tuple[int, int, int],
) -> Worth:
    """`costs`: with the accelerator; `slots`: residents of a layer, and what others pass through; `dense`: bytes, weights and
    kernels of a layer's dense part."""
    alone = CostModel(costs.profile, costs.shape, costs.format, 1, accelerator=False)
    routed = experts_seconds(costs.costs, experts, top_k, *slots)
    return Worth(
        layers * (costs.dense_seconds(*dense)(1) + routed + costs.costs.launch),
        layers * (alone.dense_seconds(*dense)(1) + top_k * alone.costs.cpu[1] + alone.costs.call),
    )


def experts_seconds(
    costs: ExpertCosts,
    experts: int,
    top_k: int,
    resident: int,
    slots: int,
    tokens: int = 1,
    assign: Assign = two_lane,
) -> float:
    """Modelled seconds of a step's experts in one layer of `experts`, any of which each of its `tokens` may be routed to, when
    `resident` of them are on the accelerator, others pass through `slots`, and `assign` says what runs where. A chance hit is
    worth what the others leave to save; of several tokens' experts, as many differ as do on average."""
    view = ResidencyView(frozenset(range(resident)), {}, slots)
    active = round(experts * (1 - (1 - top_k / experts) ** tokens))
    routed = tokens * top_k
    loads = [routed * (at + 1) // active - routed * at // active for at in range(active)]
    seconds = 0.0
    for hits in range(max(0, active - experts + resident), min(active, resident) + 1):
        odds = comb(resident, hits) * comb(experts - resident, active - hits) / comb(experts, active)
        if odds < NEGLIGIBLE:
            continue
        workload = [0] * experts
        workload[:hits] = loads[:hits]
        workload[resident : resident + active - hits] = loads[hits:]
        seconds += odds * makespan(assign(workload, view, costs), workload, view, costs)
    return seconds


def loses(beside: float, alone: float) -> bool:
    """Whether `beside` seconds with the accelerator are too many, where `alone` are the CPU's."""
    return beside > MARGIN * alone
