"""dali beside llama.cpp on the same GGUF files: random models in OLMoE-1B-7B's shape (benchmarks/random_gguf.py).

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build llama --target llama-bench
    python benchmarks/vs_llama_cpp.py --llama-bench llama/bin/llama-bench [--directory D] [--pairs 5] [--add]

A pair is one process of each in turn, on the same file with the same threads, each warmed up; who goes first alternates. Shown
are medians, and the median of the pairs' ratios. Roofline = speed * weight bytes a token / read bandwidth, which dali's
process of the same pair measures; most_possible = the ratio that reading at it without a pause would give. Load = from
starting the process, file in the page cache, to its first token. Peak memory is the process's largest resident set, in
llama.cpp's case with the file it maps. Takes 12 GB of disk; --directory keeps the files; --add adds to the pairs of the last
result of the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import random_gguf
import report

PROMPT, GENERATE = 512, 64
TARGETS = {  # dali's speed over llama.cpp's
    "Q4_0": {"pp512": 3.0, "tg64": 1.5},
    "Q8_0": {"pp512": 3.0, "tg64": 1.3},
}
NAME = "vs_llama_cpp"
FIRST_TOKEN = """
import sys
import dali
dali.load(sys.argv[1], threads=int(sys.argv[2])).generate([1], max_tokens=1, ignore_eos=True)
"""
Sample = dict[str, float]


def run(command: Sequence[str]) -> tuple[str, float, int]:
    """Standard output, seconds and peak resident bytes of a process. CalledProcessError when it fails."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return out, time.perf_counter() - started, usage.ru_maxrss * 1024


def measure(bench: Sequence[str], first_token: Sequence[str]) -> tuple[Sample, dict[str, Any]]:
    """One side of a pair, and the last row of what its bench printed."""
    out, _, peak = run(bench)
    rows = json.loads(out)
    sample = {
        f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}": row["avg_ts"] for row in rows
    }
    _, load, _ = run(first_token)
    return sample | {"load_seconds": load, "peak_gb": peak / 1e9}, rows[-1]


def dali(file: Path, threads: int) -> Sample:
    tests = ["-p", str(PROMPT), "-n", str(GENERATE), "-r", "1", "-o", "json", "-t", str(threads)]
    sample, row = measure(
        [sys.executable, "-m", "dali", "bench", str(file), *tests],
        [sys.executable, "-c", FIRST_TOKEN, str(file), str(threads)],
    )
    return sample | {"token_bytes": row["token_bytes"], "read_bandwidth": row["read_bandwidth"]}


def llama_cpp(bench: Path, file: Path, threads: int) -> Sample:
    command = [str(bench), "-m", str(file), "-t", str(threads), "-r", "1", "-o", "json"]
    sample, _ = measure(
        [*command, "-p", str(PROMPT), "-n", str(GENERATE)], [*command, "-p", "0", "-n", "1", "--no-warmup"]
    )
    return sample


def pair(number: int, ours: Callable[[], Sample], theirs: Callable[[], Sample]) -> dict[str, Sample]:
    both = {"dali": ours, "llama_cpp": theirs}
    order = list(both) if number % 2 == 0 else list(both)[::-1]
    samples = {name: both[name]() for name in order}
    read = samples["dali"].pop("token_bytes") / samples["dali"]["read_bandwidth"]  # seconds a token
    for sample in samples.values():
        sample["roofline_percent"] = 100 * sample[f"tg{GENERATE}"] * read
    return samples


def most_possible(samples: list[dict[str, Sample]]) -> float:
    """The decoding ratio of reading every weight once a token at the read bandwidth without a pause."""
    return round(statistics.median(100 / one["llama_cpp"]["roofline_percent"] for one in samples), 2)


def rows_of(pairs: dict[str, list[dict[str, Sample]]]) -> list[dict[str, Any]]:
    rows = []
    for kind, samples in pairs.items():
        for measured in samples[0]["llama_cpp"]:
            ours, theirs = ([one[side][measured] for one in samples] for side in ("dali", "llama_cpp"))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            rows.append(
                {
                    "file": kind,
                    "measured": measured,
                    "dali": round(statistics.median(ours), 2),
                    "llama_cpp": round(statistics.median(theirs), 2),
                    "ratio": round(ratio, 2),
                    "target": TARGETS[kind].get(measured),
                    "most_possible": most_possible(samples) if measured == f"tg{GENERATE}" else None,
                    "pairs": len(samples),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--types", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    last = report.HERE / "results" / f"{NAME}.json"
    pairs: dict[str, list[dict[str, Sample]]] = json.loads(last.read_text())["pairs"] if options.add else {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types:
            file = (options.directory or Path(folder)) / f"olmoe-{kind.lower()}.gguf"
            if not file.is_file():
                random_gguf.write_random(file, random_gguf.Type[kind])
            samples = pairs.setdefault(kind, [])
            for number in range(len(samples), len(samples) + options.pairs):
                samples.append(
                    pair(
                        number,
                        lambda file=file: dali(file, options.threads),
                        lambda file=file: llama_cpp(options.llama_bench, file, options.threads),
                    )
                )
            if options.directory is None:
                file.unlink()
    rows = rows_of(pairs)
    report.table(rows)
    report.write(NAME, rows, threads=options.threads, pairs=pairs)


if __name__ == "__main__":
    main()
