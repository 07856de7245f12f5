"""Whether a budget of RAM is held, by the kernel's count: what `dali run --ram` and `dali serve --ram` take at most, page cache
included, in a control group of their own (version 1 or 2 of Linux's, made as root).

    python benchmarks/models/ram_budget.py FOLDER [--more 0,200]

In FOLDER the random model of from_disk.py is written (1.8 GB; 918 MiB of experts in w8), and two layers of OLMoE's shape as a
GGUF file in Q8_0 (816 MiB of experts, 204 MiB of embeddings and head), unless they are there. Budgets are the least, which dali
tells where it is given less, and so many MiB more. `run, packing` finds no store; each kind of run answers a prompt of 500
to 1,000 tokens with 60; `serve` eight of them at once, twice, which fill keys and values and the prefix cache.

group is what the control group had at a time, without libraries that another process had read before it, which are counted there;
process is the most that was resident in the process (VmHWM), those included. Every run is repeated with the budget as the group's
limit (`limited`), where the kernel would kill what it could not reclaim.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.units import parse_size
from from_disk import PROMPT, build
from memory_group import MemoryGroup

TOKENS, STREAMS = 60, 8


def prompt(model: Path, seed: int) -> str:
    words = PROMPT // 5 if model.is_file() else PROMPT  # each is several of its tokens there
    return " ".join(map(str, Random(seed).sample(range(3, 4096), words)))


def build_gguf(folder: Path) -> Path:
    path = folder / "model-Q8_0.gguf"
    if not path.exists():
        script = Path(__file__).parents[1] / "tools" / "random_gguf.py"
        subprocess.run([sys.executable, script, "Q8_0", path, "--layers", "2"], check=True)
    return path


class Watch:
    """The most resident memory of a process, read while it lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.peak, self._process = 0, process
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while self._process.poll() is None:
            try:
                text = Path(f"/proc/{self._process.pid}/status").read_text()
            except OSError:
                return
            found = re.search(r"VmHWM:\s+(\d+)", text)
            self.peak = max(self.peak, 1024 * int(found[1]) if found else 0)
            time.sleep(0.05)

    def join(self) -> int:
        self._thread.join()
        return self.peak


def run(group: MemoryGroup, model: Path, ram: str) -> tuple[int, str]:
    """The peak of one process that answers, and what it said."""
    line = [
        sys.executable,
        "-m",
        "dali",
        "run",
        str(model),
        prompt(model, 0),
        "--raw",
        "--ram",
        ram,
        "-n",
        str(TOKENS),
    ]
    return finish(subprocess.Popen(line, text=True, preexec_fn=group.join(), **PIPES))


PIPES: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    watch = Watch(process)
    said = process.communicate()[1]
    peak = watch.join()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {said}")
    return peak, said


def serve(group: MemoryGroup, model: Path, ram: str) -> tuple[int, str]:
    """As `run`, of a server that answers several at once."""
    line = [sys.executable, "-m", "dali", "serve", str(model), "--ram", ram, "--port", "0"]
    process = subprocess.Popen(line, text=True, preexec_fn=group.join(), **PIPES)
    watch, said = Watch(process), ""
    while not (found := re.search(r"http://[\d.]+:\d+", said)):
        line_said = process.stderr.readline() if process.stderr else ""
        if not line_said:
            raise SystemExit(said)
        said += line_said

    answered: list[int] = []

    def ask(seed: int) -> None:
        body = {"prompt": prompt(model, seed), "max_tokens": TOKENS, "ignore_eos": True, "seed": seed}
        request = urllib.request.Request(
            f"{found[0]}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            answered.append(json.load(answer)["usage"]["completion_tokens"])

    for turn in range(2):
        asking = [threading.Thread(target=ask, args=(turn * STREAMS + seed,)) for seed in range(STREAMS)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    process.terminate()
    if answered != [TOKENS] * 2 * STREAMS:
        raise SystemExit(f"the server answered with {answered} tokens")
    said += process.communicate()[1]
    return watch.join(), said


def least(model: Path) -> int:
    """MiB of the least budget of a server, which has more than `dali run` beside the model, as dali tells it."""
    line = [sys.executable, "-m", "dali", "serve", str(model), "--ram", "10MiB"]
    done = subprocess.run(line, capture_output=True, text=True)
    found = re.search(r"Give --ram (\d+)MiB or more", done.stderr)
    if found is None:
        raise SystemExit(done.stderr)
    return int(found[1])


def measure(folder: Path, source: Path, ram: str) -> list[dict[str, Any]]:
    rows = []
    for limited in (False, True):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for what, do in (("run, packing", run), ("run", run), ("serve", serve)):
            with MemoryGroup(parse_size(ram) if limited else None) as group:
                process, said = do(group, source, ram)
                peak = group.peak
            slots = re.search(r"room for (?:all )?(\d+)", said)
            row = {
                "source": "gguf" if source.is_file() else "safetensors",
                "ram": ram,
                "what": what,
                "limited": limited,
                "experts": int(slots[1]) if slots else 0,
                "group_mib": round(peak / 2**20),
                "process_mib": round(process / 2**20),
                "held": max(peak, process) <= parse_size(ram),
            }
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--more", default="0,200")
    settings = parser.parse_args()
    try:
        MemoryGroup().close()
    except OSError as reason:
        sys.exit(str(reason))
    settings.folder.mkdir(exist_ok=True)
    sources = [build(settings.folder), build_gguf(settings.folder)]
    os.environ["DALI_CACHE_DIR"] = str(settings.folder / "cache")
    rows: list[dict[str, Any]] = []
    for source in sources:
        mib = least(source)
        for more in settings.more.split(","):
            rows += measure(settings.folder, source, f"{mib + int(more)}MiB")
    report.table(rows)
    report.write("ram_budget", rows)


if __name__ == "__main__":
    main()
