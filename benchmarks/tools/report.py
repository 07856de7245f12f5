"""Results of the benchmark scripts: a table on stdout, a JSON file under benchmarks/results.

The file says on what machine, at which commit and by which command its rows came about; the machine is
described without names or paths.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
# That kernels are chosen by, or might be, as Linux names them: a virtual machine's model name says little.
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


def write(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> Path:
    """Write benchmarks/results/<name>.json: machine, commit, command, what `extra` adds, then the rows."""
    path = BENCHMARKS / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    head = {"machine": machine(), "commit": commit(), "command": command(), **extra}
    lines = ",\n".join(f"    {json.dumps(dict(row))}" for row in rows)
    text = json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "rows": [\n' + lines + "\n  ]\n}\n"
    json.loads(text)
    path.write_text(text, encoding="utf-8")
    print(f"written: benchmarks/results/{path.name}", file=sys.stderr)
    return path


def kept(name: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/results/<name>.json, for a script that was given no traces. SystemExit: there is none."""
    path = BENCHMARKS / "results" / f"{name}.json"
    if not path.is_file():
        sys.exit("There is no trace, nor a result: name some traces.")
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["rows"]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under the keys of the first one; numbers to the right, floats with four figures."""
    if not rows:
        print("(no rows)")
        return
    keys = list(rows[0])
    cells = [keys, *([_cell(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    right = [isinstance(rows[0][key], int | float) for key in keys]
    for line in cells:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ]
        print("  ".join(padded).rstrip())


def machine() -> dict[str, Any]:
    """Processor and what of INSTRUCTIONS it has, cores this process may use, memory, operating system and Python."""
    return {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in _cpu_info("flags").split()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def clock_mhz() -> float | None:
    """The clock rate of the first processor as Linux names it, which says little on a virtual machine; None elsewhere."""
    named = _cpu_info("cpu MHz")
    return float(named) if named else None


def commit() -> str:
    """The commit's hash, marked when files other than results have changed; "none" outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return f"{head} with changes" if changed else head


def command() -> str:
    """How this script was called, its folder shortened to the repository's."""
    script = Path(sys.argv[0]).resolve().as_posix().rpartition("/benchmarks/")[2]
    return " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=BENCHMARKS.parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu_info(field: str) -> str:
    """What Linux says of the first processor; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _memory_gib() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
