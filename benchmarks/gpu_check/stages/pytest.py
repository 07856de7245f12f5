"""The tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys

from result import Result
from runner import ROOT


def run(result: Result) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["pytest printed nothing"]
    counts = {
        kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", lines[-1])
    }
    for line in lines:
        if line.startswith(("FAILED", "ERROR", "SKIPPED")):
            result.row(test=line)
    result.note(lines[-1])
    result.limit("tests passed", counts.get("passed", 0), least=1)
    result.limit("failed", counts.get("failed", 0) + counts.get("error", 0), most=0)
    result.limit("skipped", counts.get("skipped", 0), most=0)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {done.returncode}: {lines[-1]}")
