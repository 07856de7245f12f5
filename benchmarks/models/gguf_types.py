"""dali beside llama.cpp, type by type: GGUF files in OLMoE-1B-7B's widths with all matrices in one type and fewer layers
(benchmarks/tools/random_gguf.py), decoding and prompts.

    (llama.cpp's library and package: as vs_llama_cpp.py says)
    LLAMA_CPP_LIB_PATH=llama/bin python benchmarks/models/gguf_types.py [--types Q4_K IQ3_S ...] [--layers 4] [--rounds 7] [--add]

Both are loaded at once and take turns, as in hybrid_roofline.py: tg64, greedy, and pp512; who goes first alternates. read = the
read bandwidth, GB/s. Roofline = the bytes of a token's weights, as dali keeps them and as the file has them, * tokens a second /
that bandwidth: dali's and llama.cpp's. most_possible = the ratio that reading the file's bytes at it without a pause would give.
stored = dali's bytes a token over the file's: 1 where it computes the type as stored. Others = the share of the cores that other
programs had meanwhile (Linux); samples with more than 10 % are left out where that leaves three. Shown are medians, and the
medians of the rounds' ratios. A type that dali refuses says so. A type's file takes up to 2 GB of disk, and twice that of memory;
--directory keeps the files; --add keeps the last result's rows of other types.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import random_gguf
import report
from hybrid_roofline import dali_side, llama_cpp_side, quiet
from random_blocks import BLOCKS
from vs_llama_cpp import PP, TG, Pair, in_turn, loaded

NAME = "gguf_types"
Array = NDArray[np.float64]


def beside(file: Path, threads: int, rounds: int) -> list[Pair]:
    with loaded(dali_side, file, threads, "auto") as ours, loaded(llama_cpp_side, file, threads) as theirs:
        return in_turn(0, rounds, ours, theirs)


def row(kind: str, file_bytes: float, samples: list[Pair]) -> dict[str, Any]:
    """Of rounds; file_bytes: those of a token's weights in the file."""
    shown = quiet(samples)

    def of(side: str, measured: str) -> Array:
        return np.array([both[side][measured] for both in shown])

    def middle(values: Array, digits: int = 1) -> float:
        return round(float(np.median(values)), digits)

    found: dict[str, Any] = {"type": kind}
    for test in (TG, PP):
        ours, theirs = of("dali", test), of("llama_cpp", test)
        found |= {f"dali_{test}": middle(ours), f"llama_cpp_{test}": middle(theirs)}
        found |= {f"ratio_{test}": middle(ours / theirs, 2)}
    most = (
        of("dali", "read_gb") * 1e9 / file_bytes
    )  # tokens a second, were the file's bytes read without a pause
    return found | {
        "most_possible": middle(most / of("llama_cpp", TG), 2),
        "read": middle(of("dali", "read_gb")),
        "dali_roofline_percent": middle(of("dali", "roofline")),
        "llama_cpp_roofline_percent": middle(100 * of("llama_cpp", TG) / most),
        "gb_per_token": middle(of("dali", "gb_per_token"), 4),
        "stored": middle(of("dali", "gb_per_token") * 1e9 / file_bytes, 3),
        "others_percent": middle(np.maximum(*(of(side, "others_percent") for side in ("dali", "llama_cpp")))),
        "rounds": len(shown),
        "note": "",
    }


def measure(kind: str, folder: Path, layers: int, threads: int, rounds: int) -> dict[str, Any]:
    type = random_gguf.Type[kind]
    file = folder / f"olmoe-{layers}-{kind.lower()}.gguf"
    if not file.is_file():
        random_gguf.write_random(file, type, layers)
    try:
        return row(kind, random_gguf.token_bytes(type, layers), beside(file, threads, rounds))
    except SystemExit as refusal:  # a side's process ended
        return {"type": kind, "note": str(refusal)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama.cpp's Python package is not here: pip install llama-cpp-python")
    last = report.BENCHMARKS / "results" / f"{NAME}.json"
    found = {other["type"]: other for other in json.loads(last.read_text())["rows"]} if options.add else {}
    for kind in options.types:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = measure(
                kind, options.directory or Path(folder), options.layers, options.threads, options.rounds
            )
        rows = [found[kind] for kind in BLOCKS if kind in found]
        # Now, for an interruption to leave what there is.
        report.write(NAME, rows, threads=options.threads, layers=options.layers)
    report.table(sorted(rows, key=lambda row: len(row) == 2))  # a row that has all columns first


if __name__ == "__main__":
    main()
