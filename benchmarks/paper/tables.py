"""The paper's Tables 2 and 9 and its breakdown (DALI, arXiv 2602.03495), replayed from traces on its PC, each beside its figure.

All times are modelled; the routing and the experts' sizes are those of the traces given, not of the paper's models.

- breakdown: batch 32, 25 % of the experts resident. `greedy`: the paper's assignment with nothing cached, over all experts on the
  CPU; `prefetch`: with residual prefetching, over greedy (where the trace holds those predictions; into scratch slots, so one
  expert a layer is resident, as in its base here); `cache`: with the paper's replacement, over a static cache of that size.
- table 9: batch 32, 50 % resident, greedy and the paper's replacement under (w_size, u_size), over HybriMoE's replacement (MRS).
- table 2: share of the busiest (top-2) experts of a batch found by their totals over the sequences of the first half
  ("statistics"), and by the next gate on this layer's gate input where the trace holds it, on the second half.

    python benchmarks/paper/tables.py TRACE[:SHAPE] ... [--tokens 2048]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali import systems
from dali.errors import UsageError
from dali.policies import Policies, create
from dali.policies.cache import CachePolicy
from dali.replay.steps import forwards
from dali.replay.traces.trace import Trace
from default_policy import routing
from replays import Replays, busiest, counts

BATCH = 32
WINDOWS = ((2, 8), (2, 16), (4, 8), (4, 16), (8, 8))
FEW_WINDOWS = ((2, 1), (2, 2), (4, 1), (4, 2), (8, 1))  # below 64 experts
PAPER_BREAKDOWN = {"greedy": "4.1 (4.42 in its text)", "prefetch": "1.09", "cache": "1.38"}
PAPER_WINDOWS = {  # over its HybriMoE column: DeepSeek-V2-Lite and Qwen3-30B-A3B, Mixtral-8x7B
    (2, 8): "1.47, 1.07",
    (2, 16): "1.41, 1.04",
    (4, 8): "1.51, 1.12",
    (4, 16): "1.46, 1.10",
    (8, 8): "1.58, 1.11",
    (2, 1): "1.16",
    (2, 2): "1.15",
    (4, 1): "1.22",
    (4, 2): "1.13",
    (8, 1): "1.20",
}
PAPER_BUSIEST = {"statistics": "0.12-0.49", "next_gate": "0.33-0.65"}


class Bench(Replays):
    """One trace's second half under its shape."""

    def __init__(self, path: str, shape: str, tokens: int) -> None:
        super().__init__(routing(path, "second"), shape)
        self.some = forwards(self.trace, BATCH, tokens)

    def speed(self, assign: str, cache: CachePolicy | str, share: str, **prefetch: Any) -> float:
        """Generated tokens a modelled second."""
        slots = max(self.slots(share), 1)
        kept = self.cache(cache, slots) if isinstance(cache, str) else cache
        kind = prefetch.pop("prefetch", "none")
        policies = Policies(create("assign", assign), create("prefetch", kind, **prefetch), kept)
        return self.play(policies, slots, self.some).speed

    def breakdown(self) -> list[dict[str, Any]]:
        count = 4 if self.trace.experts >= 64 else 1
        bare = self.speed("greedy", "static", "0%")
        found: dict[str, float | None] = {"greedy": bare / self.speed("cpu", "static", "0%")}
        known = ("residual", 1) in self.trace.predicted
        ahead = self.speed("greedy", "static", "0%", prefetch="residual", count=count) if known else None
        found["prefetch"] = ahead and ahead / bare
        found["cache"] = self.speed("greedy", "workload", "25%") / self.speed("greedy", "static", "25%")
        return [row("breakdown", name, value, PAPER_BREAKDOWN[name]) for name, value in found.items()]

    def windows(self) -> list[dict[str, Any]]:
        trace, slots = self.trace, self.slots("50%")
        mrs = systems.get("hybrimoe").create(trace.layers, trace.experts, trace.top_k, slots).cache
        before = self.speed("greedy", mrs, "50%")
        rows = []
        for window, swaps in WINDOWS if trace.experts >= 64 else FEW_WINDOWS:
            cache = self.cache("workload", slots, window=window, swaps=swaps)
            speed = self.speed("greedy", cache, "50%") / before
            rows.append(row("9", f"({window}, {swaps})", speed, PAPER_WINDOWS[window, swaps]))
        return rows

    def busiest(self, first: Trace) -> list[dict[str, Any]]:
        trace, found = self.trace, {"statistics": 0.0, "next_gate": 0.0}
        known = trace.predicted.get(("next_gate", 1))
        totals = counts(first.ids[first.phase == 1], trace.experts)
        events = 0
        for step in self.some:
            if step.prefill:
                continue
            busy = busiest(counts(trace.ids[step.rows], trace.experts), 2)
            guessed = {"statistics": busiest(totals, 2)}
            if known is not None:
                guessed["next_gate"] = np.roll(busiest(counts(known[step.rows], trace.experts), 2), 1, axis=0)
            for name, guess in guessed.items():  # the first layer has no layer before it
                found[name] += (busy[1:, :, None] == guess[1:, None, :]).any(2).mean(1).sum()
            events += trace.layers - 1
        names = ["statistics"] if known is None else ["statistics", "next_gate"]
        return [row("2", name, found[name] / events, PAPER_BUSIEST[name]) for name in names]


def row(table: str, what: str, value: float | None, paper: str) -> dict[str, Any]:
    return {
        "table": table,
        "what": what,
        "here": "no predictions" if value is None else round(value, 3),
        "paper": paper,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+", metavar="TRACE[:SHAPE]")
    parser.add_argument("--tokens", type=int, default=2048, help="generated tokens (default 2048)")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for named in arguments.traces:
        path, _, shape = named.partition(":")
        try:
            bench = Bench(path, shape or "own", arguments.tokens)
        except UsageError as error:
            sys.exit(str(error))
        found = bench.breakdown() + bench.windows() + bench.busiest(routing(path, "first"))
        rows += [{"trace": Path(path).stem, "shape": shape or "own", **one} for one in found]
    report.table(rows)
    report.write("paper_tables", rows, modelled=True)


if __name__ == "__main__":
    main()
