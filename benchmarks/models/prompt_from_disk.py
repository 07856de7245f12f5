"""Prompts of 512 tokens of a model larger than its budget, in OLMoE-1B-7B's shape: how near the disk and computing they come.

    python benchmarks/models/prompt_from_disk.py FOLDER TRACE.npz [--types Q8_0 Q4_0] [--shares 25 50 75] [--prompts 3]

In FOLDER vs_mmap.py's models are written (walk_gguf.py; 7.4 GB as Q8_0, 4 GB as Q4_0, and as much again for dali's store;
deleted when measured, unless --keep). Each budget, a share of the file's size, runs in a process of its own, and all experts in
RAM before: one prompt, for which the system has to provide memory, and --prompts more, routed without favourites, of which the
one in the middle by its seconds counts. Rows of files that are not measured now are kept.

Two bounds stand beside it. `disk_seconds`: what the disk takes, with nothing else to do, for the experts that this prompt wanted
and RAM lacked, each once a chunk, at the most that it gives before or after (random experts past the page cache, 2, 4 and 8 at a
time). `computing_seconds`: the prompt with all experts in RAM. `of_bound`: the longer one, of the seconds taken; `of_disk`: the
first alone. `stalled`: seconds in which nothing was left to compute. `others`: processor seconds of all other processes
meanwhile, without which a figure of two busy cores says little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import from_disk
import report
import vs_mmap
import walk_gguf

NAME, CONTEXT = "prompt_from_disk", vs_mmap.CONTEXT


def processor_seconds() -> float:
    """Of all other processes since the machine began."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, soft = ticks[:7]
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK") - time.process_time()


def run(file: Path, ram: int, prompts: int, tokens: list[int]) -> dict[str, Any]:
    """One budget, in this process; 0: all experts in RAM."""
    import dali
    from dali.store.disk_pool import DiskPool

    budget: dict[str, Any] = {"ram": ram} if ram else {}
    llm = dali.load(file, ctx_size=CONTEXT, cache_ram=0, cache_type="q8", parallel=1, threads=2, **budget)
    pool = llm.loaded.pool if isinstance(llm.loaded.pool, DiskPool) else None
    speeds, taken = [from_disk.speed_apart(pool)], []
    for number in range(1 + prompts):
        prompt = random.Random(number).sample(tokens, len(tokens))
        before, others, began = llm.telemetry.disk, processor_seconds(), time.perf_counter()
        llm.generate(prompt, max_tokens=1, ignore_eos=True)
        seconds, others = time.perf_counter() - began, processor_seconds() - others
        counted = llm.telemetry.disk.since(before) if before and llm.telemetry.disk else None
        taken.append((seconds, others, counted))
    speed = max(*speeds, from_disk.speed_apart(pool))
    row: dict[str, Any] = {"first_prompt_seconds": taken[0][0]}
    seconds, others, counted = sorted(taken[1:], key=lambda one: one[0])[(prompts - 1) // 2]
    row |= {"prompt_seconds": seconds, "others": others}
    if pool is not None and counted is not None:
        row |= {"slots": pool.slots, "depth": pool.depth, "chunk": llm.engine.scheduler.step_tokens}
        row |= {"disk_gb_s": speed / 1e9, "disk_seconds": counted.wanted_bytes / speed}
        row |= {"read_ahead": counted.ahead_used + counted.ahead_late, "stalled": counted.stalled_seconds}
    return row | {"peak_mib": from_disk.peak() >> 20}


def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one file."""
    walks = vs_mmap.walks_of(options.trace)
    tokens = dict(zip(walks, walk_gguf.tokens_of(list(walks.values())), strict=True))["prompt"]
    rows: list[dict[str, Any]] = []
    with vs_mmap.model(kind, walks, options) as (file, cache, size):
        for share in [0, *options.shares]:
            limit = size * share // 100 // 2**20 * 2**20
            command = [sys.executable, __file__, str(file), str(options.trace)]
            command += [
                "--prompts",
                str(options.prompts),
                "--one",
                str(limit),
                json.dumps([*tokens, tokens[0] - 1]),
            ]
            environment = os.environ | {"DALI_CACHE_DIR": str(cache)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            row = {"file": kind, "share": share or "all", "limit_mib": limit >> 20}
            row |= json.loads(done.stdout.splitlines()[-1])
            if share:
                computing = rows[0]["prompt_seconds"]
                bound = max(row["disk_seconds"], computing)
                row |= {"computing_seconds": computing, "of_bound": bound / row["prompt_seconds"]}
                row["of_disk"] = row["disk_seconds"] / row["prompt_seconds"]
            rows.append(
                {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = vs_mmap.arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        limit, tokens = int(options.one[0]), json.loads(options.one[1])
        print(json.dumps(run(options.folder, limit, options.prompts, tokens)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    there = (report.BENCHMARKS / "results" / f"{NAME}.json").exists()
    rows = [row for row in (report.kept(NAME) if there else []) if row["file"] not in options.types]
    for kind in options.types:
        rows += measure(kind, options)
        report.write(NAME, rows)  # as far as it has come
    report.table([{key: row.get(key, "") for key in rows[-1]} for row in rows])


if __name__ == "__main__":
    main()
