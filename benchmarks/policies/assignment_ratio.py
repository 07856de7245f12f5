"""How near the optimum greedy and two_lane come, in the lane model, on recorded workloads.

Workloads: one MoE layer's tokens per expert, of recorded routing (batch B = one token each of B sequences
side by side; "prompt" = one sequence's whole prompt as a single chunk). Residents are drawn at random. The
optimum is a mixed-integer program (lane_optimum.py); where its time limit strikes, the gap it leaves is in
the result. A policy's ratio is optimum / its makespan, all times modelled on the shipped profiles with w4
experts of the recorded model's own size.

    python benchmarks/policies/assignment_ratio.py [--traces DIR] [--samples N] [--seconds S]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import known, load
from dali.policies import create
from dali.policies.lanes import makespan
from dali.policies.plan import ResidencyView
from dali.replay.traces.public import read
from lane_optimum import optimum

POLICIES = ("two_lane", "greedy", "gpu", "cpu", "cpu_on_miss")
RESIDENT = (0.0, 0.25, 0.5, 0.75)
SLOTS = (2, 4)
PROMPT = "prompt"
# hidden, intermediate: the models' config.json
SIZES = {
    "gpt-oss-20b_dev": (2880, 2880),
    "olmoe-1b-7b_dev": (2048, 1024),
    "kimi-linear-48b-a3b_dev": (2304, 1024),
    "smollm2-moe_trace": (576, 96),
    "dali-tiny_trace": (192, 64),
}


class Routing:
    """Recorded routing: ids [tokens, layers, k], and each sequence's tokens as (prompt rows, decode rows)."""

    def __init__(self, path: Path) -> None:
        data = np.load(path)
        if "ids" in data:
            trace = read(path)
            self.ids, self.experts = trace.ids, trace.experts
            sequence = np.repeat(np.arange(trace.sequences), np.diff(trace.seq_ptr))
            decode = trace.phase == 1
        else:  # the project's own early recordings: expert_ids [layers, tokens, k]
            self.ids = data["expert_ids"].transpose(1, 0, 2)
            self.experts = int(data["n_experts"])
            sequence, decode = data["seq_id"], data["is_decode"]
        rows = [np.flatnonzero(sequence == s) for s in np.unique(sequence)]
        self.prompts = [row[~decode[row]] for row in rows if not decode[row].all()]
        self.decodes = [row[decode[row]] for row in rows]

    def batches(self) -> list[int | str]:
        sizes = [batch for batch in (1, 8, 32) if batch <= len(self.decodes)]
        return [*sizes, PROMPT] if self.prompts else sizes

    def workload(self, batch: int | str, rng: Random) -> list[int]:
        """Tokens per expert of a random layer in a random step."""
        if isinstance(batch, str):
            tokens = list(rng.choice(self.prompts))
        else:
            side_by_side = rng.sample(self.decodes, batch)
            step = rng.randrange(min(len(rows) for rows in side_by_side))
            tokens = [rows[step] for rows in side_by_side]
        layer = rng.randrange(self.ids.shape[1])
        return np.bincount(self.ids[tokens, layer].ravel(), minlength=self.experts).tolist()


def packed_w4(hidden: int, intermediate: int) -> int:
    """Bytes of one expert: three matrices in groups of 32 four-bit weights and a two-byte scale, padded to
    4096."""
    return math.ceil(3 * hidden * intermediate * 18 / 32 / 4096) * 4096


def instances(
    folder: Path, samples: int
) -> Iterator[tuple[str, int | str, str, float, list[int], ResidencyView, CostModel]]:
    for trace, (hidden, intermediate) in SIZES.items():
        if not (folder / f"{trace}.npz").is_file():
            print(f"skipped: the trace {trace}.npz is absent", file=sys.stderr)
            continue
        routing = Routing(folder / f"{trace}.npz")
        shape = ExpertSize(hidden, intermediate, 3, {"w4": packed_w4(hidden, intermediate)})
        models = {name: CostModel(load(name), shape, "w4", max_tokens=512) for name in known()}
        rng = Random(trace)
        for batch in routing.batches():
            for share in RESIDENT:
                for sample in range(samples):
                    workload = routing.workload(batch, rng)
                    residents = rng.sample(range(routing.experts), round(share * routing.experts))
                    view = ResidencyView(frozenset(residents), slots=SLOTS[sample % len(SLOTS)])
                    for profile, model in models.items():
                        yield trace, batch, profile, share, workload, view, model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("DALI_TRACES", "traces")))
    parser.add_argument("--samples", type=int, default=8, help="workloads a cell (default 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time limit of one optimum (default 10)")
    arguments = parser.parse_args()

    policies = {name: create("assign", name) for name in POLICIES}
    cells: dict[tuple[Any, ...], list[dict[str, float]]] = defaultdict(list)
    for trace, batch, profile, share, workload, view, model in instances(arguments.traces, arguments.samples):
        costs = model.costs
        spans = {
            name: makespan(policy.assign(0, workload, view, costs), workload, view, costs)
            for name, policy in policies.items()
        }
        if spans["two_lane"] > spans["greedy"]:
            raise AssertionError(f"two_lane is slower than greedy: {workload} {view} {profile}")
        best = optimum(workload, view, costs, min(spans.values()), arguments.seconds)
        ratios = {name: best.found / seconds for name, seconds in spans.items()}
        gap = 1 - best.bound / best.found
        cells[trace, batch, profile, share].append({**ratios, "gap": gap})
    if not cells:
        sys.exit(f"There is no trace in {arguments.traces}: name their folder by --traces or DALI_TRACES.")

    rows = [
        {"trace": trace, "batch": batch, "profile": profile, "resident": share, **summary(found)}
        for (trace, batch, profile, share), found in cells.items()
    ]
    for column in ("trace", "batch", "profile", "resident"):
        groups: dict[Any, list[dict[str, float]]] = defaultdict(list)
        for key, found in cells.items():
            groups[dict(zip(("trace", "batch", "profile", "resident"), key, strict=True))[column]] += found
        report.table([{column: str(group), **summary(found)} for group, found in groups.items()])
        print()
    everything = summary([one for found in cells.values() for one in found])
    report.table([{"all": "all", **everything}])
    report.write("assignment_ratio", rows, modelled=True, summary=everything)


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean ratios of the policies, the worst of the two compared, and the largest gap of an unfinished
    optimum."""
    means = {name: round(statistics.fmean(one[name] for one in found), 4) for name in POLICIES}
    worst = {f"{name}_worst": round(min(one[name] for one in found), 4) for name in ("two_lane", "greedy")}
    return {"n": len(found), **means, **worst, "largest_gap": round(max(one["gap"] for one in found), 4)}


if __name__ == "__main__":
    main()
