"""Decoding on the CPU beside what memory allows, with a random model in OLMoE-1B-7B's shape (benchmarks/tools/random_olmoe.py).

As `dali bench` measures it: tg64, one sequence, greedy, each repetition between two measurements of the read bandwidth. Roofline
= expert and dense weight bytes read a token / that bandwidth, over the time a token takes. Outside kernels = Python, torch
and sampling. Resident memory is the process's, beside packed weights + keys and values + 600 MB.

    python benchmarks/models/decode_roofline.py [--directory D] [--quants w4 w8] [--repetitions 5] [--threads N]

Takes 12 GB of disk; without --directory model and stores go to a temporary folder and are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import random_olmoe
import report

TARGET_PERCENT = {"w4": 60, "w8": 68}
OUTSIDE_PERCENT, MEMORY_PERCENT = 15, 105
SPARE = 600 * 10**6
MEASURE = """
import json, sys
import dali
from dali.measure.bench import Test, measure
directory, quant, repetitions, threads = sys.argv[1:]
llm = dali.load(directory, quant=quant, threads=int(threads) or None)
(found,) = measure(llm, [Test(0, 64)], int(repetitions))
rss = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
kept = llm.expert_bytes + llm.dense_bytes + llm.engine.last.sequence.state.nbytes
print(json.dumps([found.speeds, found.bandwidths, found.token_bytes, found.roofline, found.shares, rss, kept]))
"""


def row(directory: Path, quant: str, repetitions: int, threads: int) -> dict[str, object]:
    call = [sys.executable, "-c", MEASURE, str(directory), quant, str(repetitions), str(threads)]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    speeds, bandwidths, token_bytes, roofline, shares, rss, kept = json.loads(done.stdout)
    return {
        "experts": quant,
        "tokens_per_second": round(sorted(speeds)[len(speeds) // 2], 2),
        "read_gb_per_second": round(sorted(bandwidths)[len(bandwidths) // 2] / 1e9, 1),
        "gb_per_token": round(token_bytes / 1e9, 3),
        "roofline_percent": round(100 * roofline, 1),
        "target_percent": TARGET_PERCENT.get(quant),
        "expert_kernels_percent": round(100 * shares["experts"], 1),
        "dense_kernels_percent": round(100 * shares["dense"], 1),
        "attention_percent": round(100 * shares["attention"], 1),
        "outside_percent": round(100 * shares["rest"], 1),
        "resident_gb": round(rss / 1e9, 2),
        "weights_kv_600mb_gb": round((kept + SPARE) / 1e9, 2),
        "resident_percent": round(100 * rss / (kept + SPARE), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--quants", nargs="+", default=["w4", "w8"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        directory = options.directory or Path(folder, "olmoe")
        if options.directory is None:
            os.environ["DALI_CACHE_DIR"] = str(Path(folder, "cache"))
        if not (directory / random_olmoe.INDEX).is_file():
            random_olmoe.write_checkpoint(directory)
        for quant in options.quants:
            random_olmoe.write_store(directory, quant)
            rows.append(row(directory, quant, options.repetitions, options.threads))
    report.table(rows)
    limits = {"outside_percent": OUTSIDE_PERCENT, "resident_percent": MEMORY_PERCENT}
    report.write("decode_roofline", rows, limits=limits)


if __name__ == "__main__":
    main()
