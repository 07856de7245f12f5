"""The spans of a plan's timeline in the lane model (policies/lanes.py), and whether the plan can be run at all. All modelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dali.hardware.cost import ExpertCosts
from dali.policies.lanes import accelerator_end, lane_inputs
from dali.policies.plan import LayerPlan, ResidencyView


class Span(NamedTuple):
    """One expert on one lane ("cpu", "link" or "gpu"), in seconds from the start of the layer's experts."""

    lane: str
    expert: int
    start: float
    end: float


def timeline(plan: LayerPlan, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts) -> list[Span]:
    """Every expert's spans. ValueError: the plan leaves out or repeats an active expert, breaks the launch
    order, or needs slots the view does not have."""
    active = [expert for expert, tokens in enumerate(workload) if tokens]
    if sorted(plan.cpu + plan.gpu) != active:
        raise ValueError(f"{plan} does not hold each active expert of {active} once")
    residents = [expert for expert in plan.gpu if expert in view.resident]
    landing = [expert for expert in view.landing() if expert in plan.gpu]
    if plan.gpu != (*residents, *landing, *plan.fetch):
        raise ValueError(f"{plan} does not launch residents, then experts in flight, then fetched ones")
    if plan.fetch and not view.slots:
        raise ValueError(f"{plan} fetches without a scratch slot")

    spans = [
        *_back_to_back("cpu", plan.cpu, [costs.cpu[workload[expert]] for expert in plan.cpu], costs.handover),
        *_back_to_back("gpu", residents, [costs.gpu[workload[expert]] for expert in residents], costs.launch),
    ]
    cpu_end, resident, arrivals, fetched = lane_inputs(plan, workload, view, costs)
    log: list[tuple[float, float, float, float]] = []
    accelerator_end(resident, arrivals, fetched, view, cpu_end, costs, log)
    for expert, (copy, landed, start, end) in zip([*view.landing(), *plan.fetch], log, strict=True):
        spans.append(Span("link", expert, copy, landed))
        if end > start:
            spans.append(Span("gpu", expert, start, end))
    return spans


def _back_to_back(
    lane: str, experts: Sequence[int], seconds: Sequence[float], start: float
) -> Iterator[Span]:
    for expert, took in zip(experts, seconds, strict=True):
        yield Span(lane, expert, start, start + took)
        start += took
