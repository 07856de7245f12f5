"""Whether an accelerator is worth having: a token's modelled time with it, and on the CPU alone.

Within an accelerator's runtime no plan is slower, modelled, than all experts on the CPU: two_lane has compared them. But the
runtime itself costs launches, handovers and waits, for which a slow or small accelerator may not make up.
"""

from __future__ import annotations

from math import comb

from dali.hardware.cost import ExpertCosts
from dali.policies.assign.two_lane import two_lane
from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView

MARGIN = 1.05  # times: what the CPU alone has to be faster, as residents are found more often than by chance


def experts_seconds(costs: ExpertCosts, experts: int, top_k: int, resident: int, slots: int) -> float:
    """Modelled seconds of a token's experts in one layer of `experts`, any of which it may be routed to, when `resident` of them
    are on the accelerator and others pass through `slots`. A chance hit is worth what the others leave to save."""
    view = ResidencyView(frozenset(range(resident)), {}, slots)
    seconds = 0.0
    for hits in range(max(0, top_k - experts + resident), min(top_k, resident) + 1):
        workload = [0] * experts
        workload[:hits] = [1] * hits
        workload[resident : resident + top_k - hits] = [1] * (top_k - hits)
        odds = comb(resident, hits) * comb(experts - resident, top_k - hits) / comb(experts, top_k)
        seconds += odds * makespan(two_lane(workload, view, costs), workload, view, costs)
    return seconds


def loses(beside: float, alone: float) -> bool:
    """Whether `beside` seconds with the accelerator are too many, where `alone` are the CPU's."""
    return beside > MARGIN * alone
