"""Checks dali on this machine's GPU: `make gpu-check`, or `python benchmarks/gpu_check/run.py`, within 8 minutes.

Needs a Python with torch's CUDA build, transformers, cmake, ninja, nanobind, pytest and a C++ compiler; no network, and nothing
is installed. Stages run one after another, each a process with a time limit of its own. The report is written anew after each
one: report.md, report.json, and profile.json, which `dali run --profile` takes. Exit code 0: all passed; 1: a limit was missed,
or a stage failed, was stopped or could not run; 2: there is no GPU, or the arguments are wrong.

    python benchmarks/gpu_check/run.py [--stages env link ...] [--seconds N] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import report
from report_files import write_report
from result import Result, outcome
from runner import HERE, Stage, choose, run_stage

SECONDS = 480
STAGES = (
    Stage("env", 30, "versions and the machine"),
    Stage("build", 180, "the library by cmake, the kernels by NVRTC"),
    Stage("pytest", 120, "tests marked gpu"),
    Stage("right", 60, "kernels against the CPU's, bit for bit"),
    Stage("fast", 60, "kernels against the memory's bandwidth"),
    Stage("link", 45, "copies between host and GPU"),
    Stage("overlap", 45, "copies, the CPU's experts and the GPU's at once"),
    Stage("host", 45, "the host's work for a layer"),
    Stage("decode", 150, "decoding in Qwen3-30B-A3B's shape"),
    Stage("policies", 90, "published systems, measured and modelled"),
)
# Run on its own, as torch takes seconds to import and may end the process. Prints why there is no GPU.
PROBE = """
try:
    import torch
except Exception as error:
    print(f"torch cannot be imported ({error})")
else:
    if torch.version.cuda is None:
        print("torch was built without CUDA")
    elif not torch.cuda.is_available():
        print("torch finds none")
"""


def no_gpu(python: str = sys.executable) -> str | None:
    """Why there is no GPU to check; None if there is one."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    said = done.stdout.strip().splitlines()
    if done.returncode:
        return f"asking torch ended with exit code {done.returncode}"
    return said[-1] if said else None


def check(stages: Sequence[Stage], folder: Path, seconds: float, head: dict[str, Any]) -> bool:
    """Run `stages` within `seconds` and report to `folder`; whether all passed."""
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    write_report(folder, head, stages, found)
    for stage in stages:
        left = end - time.monotonic()
        print(f"{stage.name:<9}{stage.title} ...", end=" ", flush=True)
        if left < 1:
            found[stage.name] = Result().found | {"cannot": "No time was left.", "seconds": 0.0}
        else:
            found[stage.name] = run_stage(stage, folder / "work", min(stage.seconds, left))
        one = found[stage.name]
        print(f"{outcome(one)}, {one['seconds']} s", flush=True)
        for reason in (one[why] for why in ("stopped", "cannot", "error") if one.get(why)):
            print(f"         {reason}")
        for limit in one["limits"]:
            if not limit["kept"]:
                print(f"         {limit['what']}: {limit['value']:g}, not {limit['limit']}")
        write_report(folder, head, stages, found)
    return all(outcome(one) == "passed" for one in found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", metavar="NAME", help=", ".join(stage.name for stage in STAGES))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages (default %(default)s)")
    parser.add_argument("--to", type=Path, default=HERE.parent / "results" / "gpu_check", metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        stages = choose(STAGES, options.stages)
    except ValueError as error:
        parser.error(str(error))
    if (reason := no_gpu()) is not None:
        print(
            f"no CUDA device: {reason}.\nRun this where `nvidia-smi` lists a GPU, under a Python that has a CUDA build of torch "
            "(make gpu-check PYTHON=...).",
            file=sys.stderr,
        )
        return 2
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = {"date": today, "commit": report.commit(), **report.machine()}
    passed = check(stages, options.to, options.seconds, head)
    print(f"{'All passed' if passed else 'Not all passed'}. Report: {options.to / 'report.md'}")
    print(f"This machine's profile: --profile {options.to / 'profile.json'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
