"""The lane model: what a plan's timeline looks like before it runs. All its times are modelled.

Three lanes start together. The CPU, if it has any expert, hands activations over and computes them back to
back. The link carries one copy at a time: experts in flight land when the view says, fetched ones follow in
the plan's order, each at the contended pace while the CPU is still computing and at full pace afterwards. The
accelerator computes residents first, as one grouped launch, under the transfers; then the experts in flight
and the fetched ones as they land, a launch each.

Scratch slots recycle in order: of all copies, those in flight first, copy i cannot start before the compute
of copy i - slots has ended. An expert that landed but is not computed on the accelerator frees its slot on
landing. With many slots fetched experts are copied and launched in groups, which takes the host fewer calls: a
group's copies start when there is a slot for each, its launch when all have landed.
"""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import LayerPlan, ResidencyView

MOST_TOGETHER = 4  # fetched experts in one group


def group_size(slots: int) -> int:
    """Fetched experts that are copied and launched together: few enough for copies to go on while others compute."""
    return max(min(slots // 4, MOST_TOGETHER), 1)


def makespan(plan: LayerPlan, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> float:
    """Seconds until the last lane is done."""
    cpu_end, resident, arrivals, fetched = lane_inputs(plan, workload, view, costs)
    return max(cpu_end, accelerator_end(resident, arrivals, fetched, view, cpu_end, costs))


def accelerator_end(
    resident_seconds: float,
    arrivals: Sequence[tuple[float, float]],
    fetched: Sequence[float],
    view: ResidencyView,
    cpu_end: float,
    costs: ExpertCosts,
    log: list[tuple[float, float, float, float]] | None = None,
) -> float:
    """Seconds until the accelerator is done: the inner loop of planning.

    `resident_seconds`: the residents' launch and compute. `arrivals`: for each expert in flight, in landing
    order, when it lands and its launch and compute (0 when it is not computed here). `fetched`: launch and
    compute of the fetched experts in copy order. `log` takes (copy start, landed, compute start, compute end)
    of each of both.
    """
    alone, contended, slots = costs.link, costs.link_contended, view.slots
    lane, link = resident_seconds, view.link_free
    released: list[float] = []
    copy = 0.0
    for landed, seconds in arrivals:
        if landed > link:
            link = landed
        start = lane if seconds and lane > landed else landed
        if seconds:
            lane = start + seconds
        released.append(start + seconds)
        if log is not None:
            log.append((copy, landed, start, start + seconds))
            copy = landed
    group = group_size(slots)
    for first in range(0, len(fetched), group):
        together = fetched[first : first + group]
        count = len(together)
        turn = len(released) + count - 1 - slots
        copy = released[turn] if turn >= 0 and released[turn] > link else link
        if copy >= cpu_end:
            link = copy + count * alone
        else:
            link = copy + count * contended
            if link > cpu_end:  # the rest of the copies runs at full pace
                link = cpu_end + count * alone * (1 - (cpu_end - copy) / (count * contended))
        start = lane if lane > link else link
        lane = start + sum(together) - (count - 1) * costs.launch
        released += [lane] * count
        if log is not None:
            pace = (link - copy) / count
            for place, seconds in enumerate(together):
                end = start + seconds - (costs.launch if place else 0.0)
                log.append((copy + place * pace, copy + (place + 1) * pace, start, end))
                start = end
    return lane


def lane_inputs(
    plan: LayerPlan, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
) -> tuple[float, float, list[tuple[float, float]], list[float]]:
    """The CPU's end, and `accelerator_end`'s resident seconds, arrivals and fetched seconds."""
    cpu, gpu, launch = costs.cpu, costs.gpu, costs.launch
    cpu_end = costs.handover + sum([cpu[workload[expert]] for expert in plan.cpu]) if plan.cpu else 0.0
    residents = [gpu[workload[expert]] for expert in plan.gpu if expert in view.resident]
    fetched = [gpu[workload[expert]] + launch for expert in plan.fetch]
    arrivals = [
        (view.in_flight[expert], gpu[workload[expert]] + launch if expert in plan.gpu else 0.0)
        for expert in view.landing()
    ]
    return cpu_end, sum(residents) + launch if residents else 0.0, arrivals, fetched
