"""How long `dali simulate` takes for a whole trace: a cache alone, and the full timeline under the default policy.

Seconds of the whole command, its start and the bounds beside the replay included: on the wall, and of the processors. One warm
and one cold replay a row, in two processes where that pays. On a machine that others use the processors' time says more.

    python benchmarks/policies/replay_speed.py [--trace FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.replay.traces import public

FOLDER = Path(os.environ.get("DALI_TRACES", "traces"))
REPLAYS = {
    "cache alone": ("--cache-only", "--policy", "lru"),
    "timeline": ("--policy", "default", "--profile", "paper"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=FOLDER / "gpt-oss-20b_dev.npz")
    arguments = parser.parse_args()
    if not arguments.trace.is_file():
        sys.exit(f"There is no trace {arguments.trace}: name one by --trace, or its folder by DALI_TRACES.")
    public.read(arguments.trace)
    rows = []
    for name, flags in REPLAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "dali", "simulate", str(arguments.trace), *flags]
            command += ["--cache-slots", "25%", "--batch", "1", "--json", str(result)]
            started, used = time.perf_counter(), processor_seconds()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds, used = time.perf_counter() - started, processor_seconds() - used
            row = json.loads(result.read_text())["rows"][0]
        keys = (
            "trace",
            "policy",
            "tokens",
            "hit_rate",
            "cold_hit_rate",
            "belady_bypass_hit_rate",
            "random_hit_rate",
        )
        rows.append({"replay": name, **{key: row[key] for key in keys}, "seconds": round(seconds, 1)})
        rows[-1]["processor_seconds"] = round(used, 1)
    report.table(rows)
    report.write("replay_speed", rows)


def processor_seconds() -> float:
    """Of all commands run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
