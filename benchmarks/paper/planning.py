"""What planning costs beside what it plans: Figure 15 and Table 6 of the paper (DALI, arXiv 2602.03495).

Planning is measured, on one core of the machine this runs on, in Python (the optimum's program by HiGHS); the layers are
modelled, on the paper's PC. A share is planning / (planning + modelled), as if nothing hid planning.

- figure 15: batches 16 and 32, one resident expert a layer as in figure 14. `branch_and_bound` is dali.replay.bounds'
  best_assignment, `integer_program` lane_optimum.py, which also orders the copies freely. Medians of sampled layers; `speed` is
  over greedy, planning included.
- table 6: batch 8, half of the experts resident, the median of all plans of so many steps, which stand for the paper's lengths of
  a sequence. Modelled steps do not grow with their context.

    python benchmarks/paper/planning.py TRACE:SHAPE ... [--samples 10]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali import systems
from dali.errors import DaliError
from dali.hardware.cost import ExpertCosts
from dali.policies import create
from dali.policies.assign import AssignPolicy
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.bounds import best_assignment
from dali.replay.steps import forwards
from dali.replay.timeline import SCRATCH, dense_seconds
from lane_optimum import optimum
from replays import Replays, counts, load

FIGURE = {"greedy": "4.5 %", "integer_program": "55 %; greedy 1.70 x as fast"}
TABLE = {
    "hybrimoe": {32: "2.87 %", 64: "2.94 %", 256: "3.02 %"},
    "dali-paper": {32: "4.84 %", 64: "4.54 %", 256: "4.51 %"},
}
LIMIT = 2.0  # seconds of an integer program


class Timed:
    """An assignment whose calls' seconds are kept."""

    def __init__(self, policy: AssignPolicy) -> None:
        self._policy = policy
        self.seconds: list[float] = []

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        began = time.perf_counter()
        plan = self._policy.assign(layer, workload, view, costs)
        self.seconds.append(time.perf_counter() - began)
        return plan


def figure_15(replays: Replays, batch: int, samples: int) -> list[dict[str, Any]]:
    trace, costs = replays.trace, replays.model.costs
    rng = Random(0)
    decoding = [step for step in replays.steps(batch) if not step.prefill]
    before = dense_seconds(replays.shape, replays.model)(batch) + costs.launch
    hybrimoe = systems.get("hybrimoe").create(trace.layers, trace.experts, trace.top_k, 1).assign
    plans: dict[str, Callable[[Sequence[int], ResidencyView], LayerPlan]] = {
        name: lambda workload, view, policy=policy: policy.assign(0, workload, view, costs)  # type: ignore[misc]
        for name, policy in {
            "greedy": create("assign", "greedy"),
            "hybrimoe": hybrimoe,
            "two_lane": create("assign", "two_lane"),
        }.items()
    }
    plans["branch_and_bound"] = lambda workload, view: best_assignment(workload, view, costs).plan
    took: dict[str, list[float]] = {name: [] for name in [*plans, "integer_program"]}
    layers: dict[str, list[float]] = {name: [] for name in took}
    for _ in range(samples):
        step, layer = rng.choice(decoding), rng.randrange(trace.layers)
        workload = counts(trace.ids[step.rows, layer : layer + 1], trace.experts)[0].tolist()
        view = ResidencyView(frozenset([rng.randrange(trace.experts)]), slots=SCRATCH)
        for name, plan in plans.items():
            began = time.perf_counter()
            found = plan(workload, view)
            took[name].append(time.perf_counter() - began)
            layers[name].append(before + makespan(found, workload, view, costs))
        best = layers["branch_and_bound"][-1] - before
        began = time.perf_counter()
        solved = optimum(workload, view, costs, best, LIMIT)
        took["integer_program"].append(time.perf_counter() - began)
        layers["integer_program"].append(before + solved.found)
    whole = {name: statistics.median(took[name]) + statistics.fmean(layers[name]) for name in took}
    return [
        {
            "what": "figure 15",
            "trace": trace.name,
            "shape": replays.name,
            "batch": batch,
            "steps": samples,
            "policy": name,
            "planning_us": round(1e6 * statistics.median(took[name]), 1),
            "modelled_us": round(1e6 * statistics.fmean(layers[name]), 1),
            "share": round(statistics.median(took[name]) / whole[name], 4),
            "speed": round(whole["greedy"] / whole[name], 3),
            "paper": FIGURE.get(name, "-"),
        }
        for name in took
    ]


def table_6(replays: Replays, steps: int) -> list[dict[str, Any]]:
    trace, slots, batch, rows = replays.trace, replays.slots("50%"), 8, []
    for name in ("hybrimoe", "dali-paper", "default"):
        policies, guarded = replays.system(name, slots)
        timed = policies.assign = Timed(policies.assign)
        result = replays.timeline(policies, slots, guarded).run(
            [step for step in forwards(trace, batch, batch * steps) if not step.prefill]
        )
        planning = statistics.median(timed.seconds)
        layers = steps * trace.layers
        rows.append(
            {
                "what": "table 6",
                "trace": trace.name,
                "shape": replays.name,
                "batch": batch,
                "steps": steps,
                "policy": name,
                "planning_us": round(1e6 * planning, 1),
                "modelled_us": round(1e6 * result.seconds / layers, 1),
                "share": round(planning / (planning + result.seconds / layers), 4),
                "speed": "-",
                "paper": TABLE.get(name, {}).get(steps, "-"),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+", metavar="TRACE:SHAPE")
    parser.add_argument("--samples", type=int, default=10, help="layers of figure 15 (default 10)")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for named in arguments.traces:
        try:
            replays = load(named)
        except DaliError as error:
            sys.exit(str(error))
        for batch in (16, 32):
            rows += figure_15(replays, batch, arguments.samples)
        for steps in (32, 64, 256):
            rows += table_6(replays, steps)
    report.table(rows)
    report.write("paper_planning", rows, planning="measured", layers="modelled")


if __name__ == "__main__":
    main()
