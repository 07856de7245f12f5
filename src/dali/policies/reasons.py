"""Why each expert of a layer's step runs where it does, and what the layer would take with it elsewhere. All modelled."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from dali.hardware.cost import ExpertCosts
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView

CPU, RESIDENT, AHEAD, COPIED = (
    "cpu",
    "resident",
    "ahead",
    "copied",
)  # where an expert is computed, and how it got there


class Reason(NamedTuple):
    """`place`: one of those above. `otherwise`: seconds the layer would take with the expert in the other place, CPU or
    accelerator; None: it cannot be there."""

    expert: int
    place: str
    why: str
    otherwise: float | None


def reasons(
    plan: LayerPlan,
    workload: Sequence[int],
    view: ResidencyView,
    waiting: Collection[int],
    costs: ExpertCosts,
) -> tuple[float, list[Reason]]:
    """Seconds that the layer takes as planned, and a reason for each active expert in the plan's order. `waiting`: experts that
    were fetched ahead, landed or not."""
    planned = makespan(plan, workload, view, costs)
    return planned, list(_each(plan, workload, view, waiting, costs, planned))


def _each(
    plan: LayerPlan,
    workload: Sequence[int],
    view: ResidencyView,
    waiting: Collection[int],
    costs: ExpertCosts,
    planned: float,
) -> Iterator[Reason]:
    for expert in plan.cpu:
        there = expert in view.resident
        if not (there or view.slots or expert in view.in_flight):
            yield Reason(expert, CPU, "not on the accelerator, which has no slot to copy it into", None)
            continue
        otherwise = makespan(_on_accelerator(plan, expert, view), workload, view, costs)
        when = "sooner" if otherwise < planned else "no sooner"
        if there:
            why = f"on the accelerator, too, where the layer would end {when}"
        elif expert in view.in_flight:
            why = f"on its way to the accelerator, where the layer would end {when}"
        else:
            why = f"not on the accelerator: with a copy the layer would end {when}"
        yield Reason(expert, CPU, why, otherwise)
    for expert in plan.gpu:
        otherwise = makespan(_on_cpu(plan, expert), workload, view, costs)
        if expert in plan.fetch:
            sooner = otherwise < planned
            why = (
                "though on the CPU the layer would end sooner"
                if sooner
                else "as on the CPU the layer would end no sooner"
            )
            yield Reason(expert, COPIED, f"copied when it was wanted, {why}", otherwise)
        elif expert in waiting:
            yield Reason(expert, AHEAD, "predicted, and fetched ahead of its layer", otherwise)
        else:
            landing = expert in view.in_flight
            yield Reason(
                expert,
                RESIDENT,
                "resident from now on: its copy is on its way" if landing else "resident",
                otherwise,
            )


def _on_cpu(plan: LayerPlan, expert: int) -> LayerPlan:
    """The plan with one of the accelerator's experts on the CPU, after the others."""

    def without(experts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(one for one in experts if one != expert)

    return LayerPlan((*plan.cpu, expert), without(plan.gpu), without(plan.fetch))


def _on_accelerator(plan: LayerPlan, expert: int, view: ResidencyView) -> LayerPlan:
    """The plan with one of the CPU's experts on the accelerator: where it belongs among those there, else fetched last."""
    cpu = tuple(one for one in plan.cpu if one != expert)
    if expert in view.resident:
        return LayerPlan(cpu, (expert, *plan.gpu), plan.fetch)
    if expert not in view.in_flight:
        return LayerPlan(cpu, (*plan.gpu, expert), (*plan.fetch, expert))
    here = (*plan.gpu, expert)
    residents = tuple(one for one in here if one in view.resident)
    landing = tuple(one for one in view.landing() if one in here)
    return LayerPlan(cpu, (*residents, *landing, *plan.fetch), plan.fetch)
