"""Runs a stage as a process of its own, with a time limit: whatever it does, the others go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result import Result

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = ("src", "benchmarks/gpu_check", "benchmarks/tools", "tests", "tests/gpu", "tests/kernels/gpu")
LAST_LINES = 3  # of what a stage printed, which say why it failed


@dataclass(frozen=True)
class Stage:
    """`seconds`: its time limit. `command`: what is run, a result file's path behind it; None for stages/NAME.py."""

    name: str
    seconds: float
    title: str
    command: tuple[str, ...] | None = None


def environment(work: Path) -> dict[str, str]:
    """dali from this checkout, nothing of it installed, its caches empty at first; nothing looks for a network."""
    paths = [str(ROOT / folder) for folder in FOLDERS]
    if before := os.environ.get("PYTHONPATH"):
        paths.append(before)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "DALI_CACHE_DIR": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run_stage(stage: Stage, work: Path, seconds: float) -> dict[str, Any]:
    """What the stage found, and how it ended. `work`: where its files lie; `seconds`: at most these."""
    work.mkdir(parents=True, exist_ok=True)
    path, log = work / f"{stage.name}.json", work / f"{stage.name}.log"
    path.unlink(missing_ok=True)
    command = stage.command or (sys.executable, str(HERE / "stage.py"), stage.name)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, str(path)],
            cwd=ROOT,
            env=environment(work),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ended: dict[str, Any] = {}
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            ended["stopped"] = f"It was not through after {seconds:.0f} s."
            code = 0
        finally:
            _end(process)
    if code < 0:
        ended["error"] = f"It was killed by {signal.Signals(-code).name}. {_last_lines(log)}".strip()
    found = _read(path)
    if code > 0 and not found.get("error"):
        ended["error"] = f"It ended with exit code {code}. {_last_lines(log)}".strip()
    return found | ended | {"seconds": round(time.monotonic() - started, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """The stage and all it started."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver cannot be ended
        process.wait(10)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = Result().found
    return found


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:])


def choose(stages: Sequence[Stage], names: Sequence[str] | None) -> list[Stage]:
    """The stages named, in their own order; all without names. ValueError names what there is not."""
    known = {stage.name for stage in stages}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"There is no stage {unknown[0]!r}. There are {', '.join(s.name for s in stages)}.")
    return [stage for stage in stages if not names or stage.name in names]
