"""Decoding and prompts in Qwen3.6-35B-A3B's shape (benchmarks/tools/random_hybrid.py): three gated delta nets to one attention,
256 experts, top-8, and a shared one. Beside what memory allows, and beside llama.cpp on the same Q4_0 file.

    (llama.cpp's library and package: as benchmarks/models/vs_llama_cpp.py says; its converter comes with the sources)
    pip install llama-cpp-python==0.3.36 gguf sentencepiece
    LLAMA_CPP_LIB_PATH=llama/bin python benchmarks/models/hybrid_roofline.py llama_cpp_python-*/vendor/llama.cpp \\
        [--directory D] [--repetitions 5] [--rounds 15] [--threads N]

w4 and w8: the checkpoint, packed by dali. Q4_0: the file that llama.cpp's converter and quantizer make of it. tg64, one sequence,
greedy, and pp512, as `dali bench` measures them, after one to warm up. On the file both programs are loaded at once and take
turns, as in vs_llama_cpp.py; who goes first alternates. Roofline = weight bytes a token * tokens a second / the read bandwidth,
the larger one of before and after; the recurrent states, which a token reads and writes, are not counted. Attention = delta nets
between their projections, too. Rest = Python, torch and sampling. Others = the share of the cores that other programs had
meanwhile (Linux); samples with more than 10 % are left out of the table where that leaves three. Shown are medians, and the
median of the rounds' ratios. Takes 14 GB of disk and 8 GB of memory; --directory keeps the files.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import random_hybrid
import report
from vs_llama_cpp import (
    GENERATE,
    PP,
    PROMPT,
    TG,
    WARM_UP,
    Pair,
    Sample,
    Turn,
    in_turn,
    llama_cpp_decoder,
    loaded,
)

PARTS = ("experts", "dense", "attention", "rest")
TARGET_PERCENT = {"w4": 75}  # of the roofline
TARGET_RATIO = {TG: 1.3, PP: 2.0}  # dali's speed over llama.cpp's
FILE, NAME = "Q4_0", "hybrid_roofline"
LITTLE, ENOUGH = 10, 3  # percent of the cores; samples
CONVERT = Path(__file__).parents[1] / "tools" / "convert_checkpoint.py"


def dali_side(source: Path, threads: int, quant: str) -> Turn:
    """dali, loaded. Imported here, as neither side's process is to hold the other's library."""
    from dali import load
    from dali.measure import bench

    llm = load(source, threads=threads, quant=quant)
    tests = [bench.Test(0, GENERATE), bench.Test(PROMPT, 0)]

    def turn() -> Sample:
        sample: Sample = {}
        for found in bench.measure(llm, tests, 1):
            name = found.test.name
            assert found.shares is not None
            sample[name] = found.speeds[0]
            sample |= {f"{name} {part}": 100 * found.shares[part] for part in PARTS}
            if found.roofline is not None and found.token_bytes is not None:
                sample |= {"gb_per_token": found.token_bytes / 1e9, "read_gb": found.bandwidths[0] / 1e9}
                sample["roofline"] = 100 * found.roofline
        return sample

    return beside_others(turn)


def llama_cpp_side(file: Path, threads: int) -> Turn:
    decode = llama_cpp_decoder(file, threads, PROMPT)

    def turn() -> Sample:
        decode(WARM_UP, 1)
        generated = decode(GENERATE, 1)
        decode(1, PROMPT)
        return {TG: generated, PP: decode(1, PROMPT)}

    return beside_others(turn)


def beside_others(turn: Turn) -> Turn:
    """`turn`, with the share of all cores that other programs had meanwhile, steal by the host included."""

    def taken() -> float:
        user, nice, system, _, _, *interrupts = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        return sum((user, nice, system, *interrupts)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])

    def watched() -> Sample:
        before, started = taken(), time.perf_counter()
        sample = turn()
        seconds = (time.perf_counter() - started) * (os.cpu_count() or 1)
        return sample | {"others_percent": 100 * (taken() - before) / seconds}

    return watched


def quantize(source: Path, out: Path) -> None:
    """llama.cpp's quantizer, to FILE."""
    import llama_cpp as library

    options = library.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = library.LLAMA_FTYPE_MOSTLY_Q4_0, True
    status = library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(options))
    assert status == 0, f"llama_model_quantize returned {status}"


def write_files(llama_cpp: Path, directory: Path) -> tuple[Path, Path]:
    """The checkpoint and the file, where they are not there already. By way of Q8_0, the smallest that the converter writes."""
    checkpoint, file = directory / "checkpoint", directory / "hybrid-q4_0.gguf"
    if not (checkpoint / random_hybrid.INDEX).is_file():
        random_hybrid.write_checkpoint(checkpoint)
    if not file.is_file():
        between = directory / "hybrid-q8_0.gguf"
        convert = [sys.executable, str(CONVERT), str(llama_cpp), str(checkpoint), "MOSTLY_Q8_0", str(between)]
        subprocess.run(convert, check=True)  # apart, as the converter has a gguf package of its own
        quantize(between, file)
        between.unlink()
    return checkpoint, file


def alone(source: Path, threads: int, quant: str, repetitions: int) -> list[Pair]:
    with loaded(dali_side, source, threads, quant) as turn:
        return [{"dali": turn()} for _ in range(repetitions)]


def beside(file: Path, threads: int, rounds: int) -> list[Pair]:
    with loaded(dali_side, file, threads, "auto") as ours, loaded(llama_cpp_side, file, threads) as theirs:
        return in_turn(0, rounds, ours, theirs)


def rows_of(kind: str, samples: list[Pair]) -> list[dict[str, Any]]:
    shown = quiet(samples)
    return [row(kind, test, shown) | {"samples": len(shown), "of": len(samples)} for test in (TG, PP)]


def quiet(samples: list[Pair]) -> list[Pair]:
    """Those during which other programs had little, on either side; all where these are too few."""
    some = [both for both in samples if max(side["others_percent"] for side in both.values()) <= LITTLE]
    return some if len(some) >= ENOUGH else samples


def row(kind: str, test: str, samples: list[Pair]) -> dict[str, Any]:
    def middle(measured: str, digits: int = 1, side: str = "dali") -> float:
        return round(statistics.median(both[side][measured] for both in samples), digits)

    found: dict[str, Any] = {"weights": kind, "test": test, "tokens_per_second": middle(test)}
    decoding = test == TG
    found["read_gb_per_second"] = middle("read_gb") if decoding else None
    found["gb_per_token"] = middle("gb_per_token", 3) if decoding else None
    found["roofline_percent"] = middle("roofline") if decoding else None
    found["target_percent"] = TARGET_PERCENT.get(kind) if decoding else None
    found |= {f"{part}_percent": middle(f"{test} {part}") for part in PARTS}
    theirs = "llama_cpp" in samples[0]
    found["llama_cpp"] = middle(test, side="llama_cpp") if theirs else None
    ratios = [both["dali"][test] / both["llama_cpp"][test] for both in samples if theirs]
    found["ratio"] = round(statistics.median(ratios), 2) if theirs else None
    found["target_ratio"] = TARGET_RATIO[test] if theirs else None
    found["others_percent"] = middle("others_percent")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_cpp", type=Path, help="its sources: a folder with conversion/ and gguf-py/")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama.cpp's Python package is not here: pip install llama-cpp-python")
    with tempfile.TemporaryDirectory() as folder:
        if options.directory is None:
            os.environ["DALI_CACHE_DIR"] = str(Path(folder, "cache"))
        checkpoint, file = write_files(options.llama_cpp, options.directory or Path(folder))
        busy = os.getloadavg()[0]  # by other programs
        samples = {
            quant: alone(checkpoint, options.threads, quant, options.repetitions) for quant in ("w4", "w8")
        }
        samples[FILE] = beside(file, options.threads, options.rounds)
    rows = [found for kind, some in samples.items() for found in rows_of(kind, some)]
    report.table(rows)
    cut = {"layers": random_hybrid.LAYERS, "vocabulary": random_hybrid.VOCABULARY}
    report.write(
        NAME + ("_one_thread" if options.threads == 1 else ""),
        rows,
        threads=options.threads,
        load_average_before=round(busy, 2),
        cut_to=cut,
        samples=samples,
    )


if __name__ == "__main__":
    main()
