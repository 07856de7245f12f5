"""How long planning one layer takes: 128 experts, 104 of them active, on one core.

All is plain Python but the search of two_lane, which is compiled; "two_lane, plain" is the same without a compiler.

python benchmarks/policies/planning_time.py [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from random import Random
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.hardware.cost import CostModel, ExpertCosts, ExpertSize
from dali.hardware.profile import known, load
from dali.policies import create, names
from dali.policies.assign import two_lane
from dali.policies.plan import ResidencyView

EXPERTS, ACTIVE, SLOTS = 128, 104, 8
RESIDENT = (0, 32, 64, 96)
IN_FLIGHT = (0, 4)
# Qwen3-30B-A3B's experts, packed as w4.
SHAPE = ExpertSize(hidden=2048, intermediate=768, matrices=3, bytes={"w4": 2_654_208})
LIMIT_US = {"greedy": 60, "two_lane": 200}
PLAIN = "two_lane, plain"


def cases(costs: ExpertCosts) -> list[tuple[list[int], ResidencyView]]:
    rng = Random(0)
    made = []
    for resident in RESIDENT:
        for in_flight in IN_FLIGHT:
            workload = [0] * EXPERTS
            for expert in rng.sample(range(EXPERTS), ACTIVE):
                workload[expert] = rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 9))
            experts = rng.sample(range(EXPERTS), resident + in_flight)
            landing = {expert: n * costs.link for n, expert in enumerate(experts[resident:])}
            made.append((workload, ResidencyView(frozenset(experts[:resident]), landing, SLOTS)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="timings of each case (default 200)")
    rounds = parser.parse_args().rounds

    rows = []
    for name in [*names("assign"), PLAIN]:
        kind = name.partition(",")[0]
        policy = create("assign", kind, **({"cpu_layers": 0} if name == "layerwise" else {}))
        for profile in known():
            costs = CostModel(load(profile), SHAPE, "w4", max_tokens=ACTIVE).costs
            found = []
            for workload, view in cases(costs):
                with patch.object(two_lane, "search_two_lane", None) if name == PLAIN else nullcontext():
                    for _ in range(rounds):
                        start = time.perf_counter()
                        policy.assign(0, workload, view, costs)
                        found.append(1e6 * (time.perf_counter() - start))
            rows.append(
                {
                    "policy": name,
                    "profile": profile,
                    "median_us": round(statistics.median(found), 1),
                    "p90_us": round(statistics.quantiles(found, n=10)[-1], 1),
                    "limit_us": LIMIT_US.get(name, ""),
                }
            )
    report.table(rows)
    report.write("planning_time", rows, experts=EXPERTS, active=ACTIVE)


if __name__ == "__main__":
    main()
