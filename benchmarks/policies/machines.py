"""The default on many machines, replayed: fast and slow links, few and many cores, and a CPU that throttles midway. A cell's
figure is the modelled decoding speed of what dali would choose over the best of the systems that stay the same.

All times are modelled. The machines are the profile `paper` with other figures for the CPU and the link; in the throttling ones
the CPU computes and reads at a third of its pace in the second half of the steps, and nobody is told. What dali would choose: the
CPU alone where `dali simulate` says so, else the default, its plans corrected by the times of experts as they are observed
(policies.correction). "cpu alone" has no accelerator at all, "all-cpu" one for all but the experts; "static" are
residents that stay, under the default's assignment. The second half of the trace's sequences is replayed.

    python benchmarks/policies/machines.py TRACE[:SHAPE] ... [--tokens 160] [--batch 1 8] [--slots 25%]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali import systems
from dali.hardware import profile as profiles
from dali.hardware.cost import CostModel, ExpertCosts
from dali.hardware.profile import Profile
from dali.policies import Policies, create
from dali.policies.correction import CorrectedCosts
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.cells import slots_of
from dali.replay.shapes import Shape, shape_of
from dali.replay.steps import CHUNK, Forward, forwards
from dali.replay.sweep import chooses_cpu
from dali.replay.timeline import Timeline, dense_seconds
from dali.replay.traces.trace import Trace
from default_policy import routing

GOAL = 0.98
CPUS = {  # cpu_bandwidth, memory_bandwidth in B/s, cpu_rate in FLOP/s
    "few cores": (22e9, 40e9, 1.5e11),
    "many cores": (100e9, 160e9, 1.2e12),
    "server": (320e9, 420e9, 4e12),
}
LINKS = {"slow link": 2e9, "middling link": 12e9, "fast link": 50e9}  # B/s
THROTTLED = 3
OTHERS = ("cpu alone", "all-cpu", "gpu-only", "static", "lru", "dali-paper", "default")


def machine(cpu: str, link: str, slower: float = 1.0) -> Profile:
    """The profile; its CPU `slower` times slower."""
    base = profiles.load("paper")
    bandwidth, memory, rate = CPUS[cpu]
    values = {
        "cpu_bandwidth": bandwidth / slower,
        "memory_bandwidth": memory,
        "cpu_rate": rate / slower,
        "link_bandwidth": LINKS[link],
    }
    figures = {
        name: replace(base.figures[name], value=value, efficiency=1.0) for name, value in values.items()
    }
    return replace(base, name=f"{cpu}, {link}", figures={**base.figures, **figures})


class Planned:
    """An assignment by the costs that were foreseen, whatever they are; `corrected`: by what is observed, too."""

    def __init__(self, policy: Any, foreseen: ExpertCosts, corrected: bool) -> None:
        self.policy, self.foreseen, self.planned = policy, foreseen, foreseen
        self.costs = CorrectedCosts(foreseen) if corrected else None

    def assign(
        self, layer: int, workload: Sequence[int], view: ResidencyView, costs: ExpertCosts
    ) -> LayerPlan:
        plan: LayerPlan = self.policy.assign(layer, workload, view, self.planned)
        if self.costs is not None:
            expected = sum(self.foreseen.cpu[workload[expert]] for expert in plan.cpu)
            observed = sum(costs.cpu[workload[expert]] for expert in plan.cpu)
            if self.costs.note_cpu(expected, observed):
                self.planned = self.costs.now
        return plan


def policies_of(name: str, trace: Trace, capacity: int) -> tuple[Policies, bool]:
    """Of a system, and whether guards watch them."""
    if name == "static":
        sizes = {"layers": trace.layers, "experts": trace.experts, "capacity": capacity}
        return (
            Policies(
                create("assign", "two_lane"), create("prefetch", "none"), create("cache", "static", **sizes)
            ),
            False,
        )
    system = systems.get("all-cpu" if name == "cpu alone" else name)
    return system.create(trace.layers, trace.experts, trace.top_k, capacity), system.guarded


def speed(
    trace: Trace,
    steps: Sequence[Forward],
    shape: Shape,
    models: tuple[CostModel, CostModel],
    capacity: int,
    name: str,
    corrected: bool = False,
) -> float:
    """Generated tokens a modelled second; `models`: of the first and of the second half of the steps."""
    capacity = 0 if name == "cpu alone" else capacity
    policies, guarded = policies_of(name, trace, capacity)
    policies.assign = Planned(policies.assign, models[0].costs, corrected)
    timeline = Timeline(trace, policies, shape, models[0], capacity, guarded)
    middle = len(steps) // 2
    timeline.run(steps[:middle])
    timeline.costs = models[1].costs
    timeline._dense = dense_seconds(shape, models[1])
    result = timeline.run(steps[middle:])
    return result.tokens / result.seconds


def cell(
    trace: Trace, shape: Shape, cpu: str, link: str, throttles: bool, batch: int, slots: str, tokens: int
) -> dict[str, Any]:
    began, most = time.process_time(), max(CHUNK, batch)
    steps, capacity = forwards(trace, batch, max(tokens, 48 * batch)), slots_of(slots, trace)
    paces = (1.0, float(THROTTLED) if throttles else 1.0)
    beside = tuple(shape.costs(machine(cpu, link, pace), most) for pace in paces)
    alone = tuple(shape.costs(machine(cpu, link, pace), most, accelerator=False) for pace in paces)
    speeds = {
        name: speed(trace, steps, shape, alone if name == "cpu alone" else beside, capacity, name)
        for name in OTHERS
    }
    if chooses_cpu(trace, shape, beside[0], alone[0], capacity):
        choice, chosen = "cpu alone", speeds["cpu alone"]
    else:
        choice, chosen = "default", speed(trace, steps, shape, beside, capacity, "default", corrected=True)
    best = max(speeds, key=speeds.__getitem__)
    return {
        "trace": trace.name,
        "cpu": cpu + (", throttling" if throttles else ""),
        "link": link,
        "batch": batch,
        "slots": slots,
        "choice": choice,
        "ratio": round(chosen / speeds[best], 4),
        "best": best,
        "tokens_per_second": round(chosen, 2),
        "cpu_seconds": round(time.process_time() - began, 1),
        "others": {name: round(each / chosen, 4) for name, each in speeds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+", metavar="TRACE[:SHAPE]")
    parser.add_argument("--tokens", type=int, default=160, help="generated tokens a cell (default 160)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--slots", nargs="+", default=["25%"])
    arguments = parser.parse_args()
    rows = []
    for named in arguments.traces:
        path, _, shape = named.partition(":")
        trace = routing(path, "second")
        batches = [batch for batch in arguments.batch if batch <= trace.sequences]
        for cpu, link, throttles, batch, slots in product(
            CPUS, LINKS, (False, True), batches, arguments.slots
        ):
            rows.append(
                cell(
                    trace,
                    shape_of(trace, shape or "own"),
                    cpu,
                    link,
                    throttles,
                    batch,
                    slots,
                    arguments.tokens,
                )
            )
            print(
                {key: value for key, value in rows[-1].items() if key != "others"},
                file=sys.stderr,
                flush=True,
            )
    ratios = [row["ratio"] for row in rows]
    worst = min(rows, key=lambda row: row["ratio"])
    summary = {
        "cells": len(rows),
        "mean": round(sum(ratios) / len(ratios), 4),
        "worst": worst["ratio"],
        "worst cell": ", ".join(
            str(worst[key]) for key in ("trace", "cpu", "link", "batch", "slots", "best")
        ),
        f"below {GOAL}": sum(ratio < GOAL for ratio in ratios),
    }
    report.table([summary])
    report.write("machines", rows, modelled=True, summary=summary)


if __name__ == "__main__":
    main()
