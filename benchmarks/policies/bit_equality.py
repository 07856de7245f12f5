"""Bit equality over the whole matrix: every assignment x prefetch x cache policy x budget x batch, on tiny random experts.

Each setting runs on the simulated device with schedule seeds of its own, a prompt and five decode steps; its outputs are
compared with the CPU layer's, bit for bit. Budgets are expert slots: none, one, a tenth, half and all of the experts. Profile and
arithmetic (w8 or w4, exact or of the compiled kernels) are drawn. A race is an error of the device, counted apart.

    python benchmarks/policies/bit_equality.py [--seeds N]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.devices import RaceError
from dali.errors import DaliError

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from runtime.tiny_runtime import (
    BUDGETS,
    EXPERTS,
    LAYERS,
    STEPS,
    TOP_K,
    Setting,
    expected,
    identical,
    matrix,
    run,
    tiny_executor,
    tiny_model,
)


def outcome(setting: Setting) -> str:
    """ "equal", "different", "race" or "error"."""
    model = tiny_model(*setting.arithmetic)
    try:
        found = run(tiny_executor(setting, model), model, setting.batch)
    except RaceError:
        return "race"
    except DaliError:
        return "error"
    return "equal" if identical(found, expected(model, setting.batch)) else "different"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="schedules of each setting (default 2)")
    seeds = parser.parse_args().seeds

    settings = list(matrix())
    counts: dict[tuple[str, int], Counter[str]] = {}
    began = time.perf_counter()
    for setting in settings:
        for turn in range(seeds):
            found = outcome(replace(setting, seed=setting.seed + turn * len(settings)))
            counts.setdefault((setting.assign, setting.slots), Counter())[found] += 1
            if found != "equal":
                print(f"{found}: {setting}, schedule {turn}", file=sys.stderr)
    rows = [
        {"assign": assign, "slots": slots}
        | {name: counter[name] for name in ("equal", "different", "race", "error")}
        for (assign, slots), counter in counts.items()
    ]
    report.table(rows)
    report.write(
        "bit_equality",
        rows,
        shape={"layers": LAYERS, "experts": EXPERTS, "top_k": TOP_K, "steps": len(STEPS), "budgets": BUDGETS},
        settings=len(settings),
        runs=seeds * len(settings),
        seconds=round(time.perf_counter() - began, 1),
    )
    return 0 if all(set(counter) == {"equal"} for counter in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
