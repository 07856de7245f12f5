"""The optimum of one assignment in the lane model (src/dali/policies/lanes.py), as a mixed-integer program
for HiGHS.

Experts of equal workload are interchangeable, so the variables are: how many residents of each workload stay
on the accelerator, and which workload each position of the copy queue has. Experts in flight are not covered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dali.hardware.cost import ExpertCosts
from dali.policies.plan import ResidencyView


class Optimum(NamedTuple):
    """Seconds: the best makespan found and the bound below which none can be (equal once solved)."""

    found: float
    bound: float


class _Program:
    """Rows of a program under construction; a variable is an index."""

    def __init__(self) -> None:
        self.upper: list[float] = []
        self.integral: list[int] = []
        self.rows: list[tuple[dict[int, float], float]] = []

    def variable(self, upper: float = np.inf, integral: bool = False) -> int:
        self.upper.append(upper)
        self.integral.append(int(integral))
        return len(self.upper) - 1

    def at_least(self, terms: dict[int, float], low: float = 0.0) -> None:
        """sum of coefficient x variable >= low."""
        self.rows.append((terms, low))

    def minimise(self, objective: int, seconds: float) -> tuple[float | None, float]:
        matrix = np.zeros((len(self.rows), len(self.upper)))
        for row, (terms, _) in enumerate(self.rows):
            for index, coefficient in terms.items():
                matrix[row, index] += coefficient
        cost = np.zeros(len(self.upper))
        cost[objective] = 1.0
        result = milp(
            cost,
            integrality=np.array(self.integral),
            bounds=Bounds(0, np.array(self.upper)),
            constraints=LinearConstraint(matrix, lb=np.array([low for _, low in self.rows])),
            options={"time_limit": seconds, "mip_rel_gap": 1e-4},
        )
        return result.fun, result.mip_dual_bound if result.mip_dual_bound is not None else 0.0


def optimum(
    workload: Sequence[int], view: ResidencyView, costs: ExpertCosts, known: float, seconds: float
) -> Optimum:
    """Best makespan of any plan. `known`: the makespan of some plan, which bounds the search; `seconds`: time
    limit."""
    assert not view.in_flight, "experts in flight are not covered"
    unit = costs.link  # the program counts in copies: well-scaled numbers for the solver
    active = [expert for expert, tokens in enumerate(workload) if tokens]
    residents = Counter(workload[expert] for expert in active if expert in view.resident)
    absent = Counter(workload[expert] for expert in active if expert not in view.resident)
    limit = known / unit
    cpu = {tokens: costs.cpu[tokens] / unit for tokens in {*residents, *absent}}
    gpu = {tokens: costs.gpu[tokens] / unit for tokens in {*residents, *absent}}
    launch = costs.launch / unit
    # Every fetch takes the link a whole copy at least.
    positions = min(absent.total(), int(limit)) if view.slots else 0

    program = _Program()
    makespan = program.variable(limit * (1 + 1e-9))
    cpu_end = program.variable(limit * (1 + 1e-9))
    resident_end = program.variable()
    any_resident = program.variable(1, integral=True)
    any_cpu = program.variable(1, integral=True)
    kept = {tokens: program.variable(count, integral=True) for tokens, count in residents.items()}
    chosen = [{tokens: program.variable(1, integral=True) for tokens in absent} for _ in range(positions)]

    program.at_least({makespan: 1, cpu_end: -1})
    program.at_least({makespan: 1, resident_end: -1})
    total = sum(cpu[t] * n for t, n in residents.items()) + sum(cpu[t] * n for t, n in absent.items())
    off_cpu = {kept[t]: cpu[t] for t in kept} | {place[t]: cpu[t] for place in chosen for t in place}
    program.at_least({cpu_end: 1, any_cpu: -costs.handover / unit} | off_cpu, total)
    program.at_least({any_cpu: len(active)} | dict.fromkeys(off_cpu, 1), len(active))
    program.at_least({resident_end: 1, any_resident: -launch} | {kept[t]: -gpu[t] for t in kept})
    for tokens, count in residents.items():
        program.at_least({any_resident: count, kept[tokens]: -1})
    for tokens, count in absent.items():
        program.at_least({place[tokens]: -1 for place in chosen}, -count)

    slow = costs.link_contended / unit
    landed_before, lane_before, lanes = None, resident_end, []
    for position, place in enumerate(chosen):
        if position:
            program.at_least(
                dict.fromkeys(chosen[position - 1].values(), 1) | dict.fromkeys(place.values(), -1)
            )
        else:
            program.at_least(dict.fromkeys(place.values(), -1), -1)
        start, landed, lane = program.variable(), program.variable(), program.variable()
        used = dict.fromkeys(place.values(), -1.0)
        if landed_before is None:
            program.at_least({start: 1} | dict.fromkeys(place.values(), -view.link_free / unit))
        else:
            program.at_least({start: 1, landed_before: -1})
        if position >= view.slots:
            program.at_least({start: 1, lanes[position - view.slots]: -1})
        program.at_least({landed: 1, start: -1} | used)
        if slow > 1:
            _contend(program, start, landed, cpu_end, used, slow, limit)
        compute = {place[t]: -(gpu[t] + launch) for t in place}
        program.at_least({lane: 1, landed: -1} | compute)
        program.at_least({lane: 1, lane_before: -1} | compute)
        landed_before, lane_before = landed, lane
        lanes.append(lane)
    program.at_least({makespan: 1, lane_before: -1})

    found, bound = program.minimise(makespan, seconds)
    best = known if found is None else min(known, found * unit)
    return Optimum(best, min(best, bound * unit))


def _contend(
    program: _Program,
    start: int,
    landed: int,
    cpu_end: int,
    used: dict[int, float],
    slow: float,
    limit: float,
) -> None:
    """Progress in copies: 1 / slow of one a unit of time while the CPU computes, one a unit afterwards."""
    big = 2 * limit + 2
    done_before, done_after = program.variable(), program.variable()
    late = program.variable(1, integral=True)  # whether the copy lands after the CPU's end
    program.at_least({done_before: 1, start: -1 / slow})
    program.at_least({done_before: 1, start: -1, cpu_end: 1 - 1 / slow})
    program.at_least({done_after: 1, done_before: -1} | used)
    program.at_least({done_after: -1, landed: 1 / slow, late: big})
    program.at_least({done_after: -1, landed: 1, cpu_end: 1 / slow - 1, late: -big}, -big)
