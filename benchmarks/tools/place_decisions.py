"""Decisions of an assignment, drawn from recorded routing: on which of two places an expert is sooner done, the CPU or, once it
is copied there, an accelerator; and how a layer's experts are split. Pure: seconds are given.

The accelerator's side is a published profile's, its link as it is or some times as fast; the CPU's side comes from another
profile, or was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np

from dali.hardware.cost import CostModel, ExpertCosts, ExpertSize
from dali.hardware.profile import ACCELERATOR, Profile
from dali.policies.lanes import accelerator_end, lane_inputs
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.steps import CHUNK
from dali.replay.traces.trace import PREFILL, Array, Trace

PROMPT = "prompt"
RESIDENT = (0.0, 0.25, 0.5, 0.75)  # shares of experts that lie on the accelerator, in turn
SLOTS = 16
MOST_BESIDE, PROMPTS_BESIDE = 8, 4  # experts beside one that is decided on: more only take longer to measure
APART, CLOSE = (
    1.1,
    2.0,
)  # times that one place takes as long as the other: enough to be counted, and still hard to tell
FETCHED = (0, 1, 2, 4, 8, 16, 32)  # experts that a plan copies, and all


class Decision(NamedTuple):
    """An expert with so many `tokens`, and how many those have that the CPU computes in the same call."""

    tokens: int
    beside: tuple[int, ...]


class Step(NamedTuple):
    """A layer's step: tokens of the experts that lie on the accelerator, and of the others, most first."""

    resident: tuple[int, ...]
    absent: tuple[int, ...]


class Routing:
    """Of a trace. Fewer sequences than a batch has are cut into as many equal parts, which stand for sequences; where no prompt
    was recorded, tokens of an answer in a row stand for one."""

    def __init__(self, trace: Trace) -> None:
        self._ids, self._experts = trace.ids, trace.experts
        rows = [np.arange(begin, end) for begin, end in zip(trace.seq_ptr, trace.seq_ptr[1:], strict=False)]
        prompts = [each[trace.phase[each] == PREFILL] for each in rows]
        self._answers = [each[trace.phase[each] != PREFILL] for each in rows]
        self._prompts = [each for each in prompts if len(each)] or self._answers

    def workload(self, batch: int | str, draw: Random) -> list[int]:
        """Tokens per expert of some layer in some step."""
        layer = draw.randrange(self._ids.shape[1])
        tokens = self._prompt(draw) if isinstance(batch, str) else self._side_by_side(batch, draw)
        counts: list[int] = np.bincount(self._ids[tokens, layer].ravel(), minlength=self._experts).tolist()
        return counts

    def step(self, batch: int | str, share: float, draw: Random) -> Step:
        """With that share of the experts resident, at random; at least one that is active is not."""
        while True:
            workload = self.workload(batch, draw)
            residents = set(draw.sample(range(self._experts), round(share * self._experts)))
            active = [(tokens, expert in residents) for expert, tokens in enumerate(workload) if tokens]
            absent = sorted((tokens for tokens, there in active if not there), reverse=True)
            if absent:
                return Step(tuple(tokens for tokens, there in active if there), tuple(absent))

    def decision(self, batch: int | str, share: float, draw: Random) -> Decision:
        """One of a step's absent experts, and any number of the others beside."""
        absent = list(self.step(batch, share, draw).absent)
        tokens = absent.pop(draw.randrange(len(absent)))
        most = PROMPTS_BESIDE if isinstance(batch, str) else MOST_BESIDE
        return Decision(tokens, tuple(draw.sample(absent, draw.randint(0, min(len(absent), most)))))

    def _prompt(self, draw: Random) -> Array:
        rows = draw.choice(self._prompts)
        begin = draw.randrange(max(len(rows) - CHUNK, 0) + 1)
        return rows[begin : begin + CHUNK]

    def _side_by_side(self, batch: int, draw: Random) -> Array:
        answers = [each for each in self._answers if len(each)]
        if len(answers) < batch:
            parts = -(-batch // len(answers))
            answers = [part for each in answers for part in np.array_split(each, parts) if len(part)]
        together = draw.sample(answers, batch)
        at = draw.randrange(min(len(rows) for rows in together))
        return np.array([rows[at] for rows in together])


def joined(cpu: Profile, there: Profile, faster: float = 1.0) -> Profile:
    """The CPU's side of one profile, with the accelerator of another whose link is so many times as fast."""
    figures = {name: figure for name, figure in cpu.figures.items() if name not in ACCELERATOR}
    figures |= {name: there.figures[name] for name in ACCELERATOR}
    link = there.figures["link_bandwidth"]
    figures["link_bandwidth"] = replace(link, value=faster * link.value)
    left = min(faster * there["link_bandwidth"], there["memory_bandwidth"] - there["cpu_bandwidth"])
    figures["link_contended"] = replace(
        link, value=left, efficiency=1.0
    )  # CPU and link are not of one machine
    tables = tuple(table for table in cpu.tables if table.device == "cpu")
    return replace(cpu, name=f"{cpu.name} + {there.name} x {faster:g}", figures=figures, tables=tables)


def costs_of(profile: Profile, shape: tuple[int, int], format: str, nbytes: int, most: int) -> ExpertCosts:
    """Of experts of three matrices, hidden x intermediate."""
    return CostModel(profile, ExpertSize(*shape, 3, {format: nbytes}), format, most).costs


@dataclass(frozen=True)
class Outcome:
    """Of one decision. `apart`: the places differ enough; `close`: by no more than CLOSE; `right`: the sooner one is picked."""

    apart: bool
    close: bool
    right: bool


def outcome(predicted: float, measured: float, other: float) -> Outcome:
    """The CPU's seconds as predicted and as measured, and the accelerator's."""
    ratio = max(measured, other) / min(measured, other)
    return Outcome(ratio > APART, APART < ratio <= CLOSE, (predicted < other) == (measured < other))


def on_accelerator(costs: ExpertCosts, tokens: int) -> float:
    """Seconds until an expert that is not there is copied and computed."""
    return costs.link + costs.launch + costs.gpu[tokens]


def on_cpu(seconds: float, costs: ExpertCosts, decision: Decision) -> float:
    """What an expert adds to the CPU's lane, `seconds` beside others: the first one has activations handed over, and a call."""
    return seconds if decision.beside else seconds + costs.handover


def splits(step: Step) -> list[int]:
    """Numbers of absent experts, those with most tokens, that plans copy."""
    return [count for count in FETCHED if count < len(step.absent)] + [len(step.absent)]


def span(step: Step, fetched: int, costs: ExpertCosts, measured: float | None = None) -> float:
    """Seconds of the plan that copies so many, in the lane model; `measured`: of the CPU's call, in place of the costs'."""
    workload = [*step.absent, *step.resident]
    there, absent = range(len(step.absent), len(workload)), range(len(step.absent))
    plan = LayerPlan(tuple(absent[fetched:]), (*there, *absent[:fetched]), tuple(absent[:fetched]))
    view = ResidencyView(frozenset(there), slots=SLOTS)
    cpu_end, resident, arrivals, copied = lane_inputs(plan, workload, view, costs)
    if measured is not None and plan.cpu:
        cpu_end = costs.handover - costs.call + measured
    return max(cpu_end, accelerator_end(resident, arrivals, copied, view, cpu_end, costs))


@dataclass(frozen=True)
class Planned:
    """Of a step's plans, the two best as predicted: whether they are `apart`, and in the `right` order; `regret`: what
    the best one takes longer than the best there is, as a share."""

    apart: bool
    right: bool
    regret: float


def planned(step: Step, costs: ExpertCosts, measured: Mapping[int, float]) -> Planned | None:
    """`measured`: fetched -> seconds of the CPU's call. None where there is but one plan."""
    found = sorted(
        (span(step, count, costs), span(step, count, costs, cpu)) for count, cpu in measured.items()
    )
    if len(found) < 2:
        return None
    (_, first), (_, second) = found[:2]
    best = min(real for _, real in found)
    return Planned(max(first, second) / min(first, second) > APART, first < second, first / best - 1)


def drawn(routing: Routing, batch: int | str, count: int, draw: Random) -> Iterator[Decision]:
    for at in range(count):
        yield routing.decision(batch, RESIDENT[at % len(RESIDENT)], draw)


def share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
