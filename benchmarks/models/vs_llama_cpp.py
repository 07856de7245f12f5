"""dali beside llama.cpp on the same GGUF files: random models in OLMoE-1B-7B's shape (benchmarks/tools/random_gguf.py).

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build llama --target llama-bench
    pip install llama-cpp-python
    LLAMA_CPP_LIB_PATH=llama/bin python benchmarks/models/vs_llama_cpp.py --llama-bench llama/bin/llama-bench \\
        [--directory D] [--pairs 5] [--rounds 20] [--add]

pp512, load and peak memory, in pairs: one process of each in turn, on the same file with the same threads, prompts after one to
warm up. Load = from starting the process, file in the page cache, to its first token. Peak memory is the process's largest
resident set, in llama.cpp's case with the file it maps.

tg64, in rounds: both are loaded at once and generate 64 tokens in turn, after 4 to warm up, the other one asleep; memory that is
fast in one minute and slow in the next is so for both. dali's turn is `dali bench`'s, with sampling and detokenizing;
llama.cpp only computes random tokens, as llama-bench does, through its Python package; it reads the file instead of mapping it,
as from mapped pages it decodes more slowly. dali measures the read bandwidth before and after its turn; the larger one is the
round's. Roofline = speed * weight bytes a token / read bandwidth; most_possible = the ratio that reading at it without a pause
would give. Rounds with both readings in the same 10 GB/s are shown by themselves as well, where there are five.

Who goes first alternates. Shown are medians, and the median of the pairs' or rounds' ratios. Takes 12 GB of disk and 17 GB of
memory; --directory keeps the files; --add adds to the pairs and rounds of the last result of the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import random_gguf
import report

PROMPT, GENERATE, WARM_UP = 512, 64, 4
PP, TG, ROOFLINE = f"pp{PROMPT}", f"tg{GENERATE}", "roofline_percent"
TARGETS = {  # dali's speed over llama.cpp's
    "Q4_0": {PP: 3.0, TG: 1.5},
    "Q8_0": {PP: 3.0, TG: 1.3},
}
NAME = "vs_llama_cpp"
FIRST_TOKEN = """
import sys
import dali
dali.load(sys.argv[1], threads=int(sys.argv[2])).generate([1], max_tokens=1, ignore_eos=True)
"""
PAUSE = 0.1  # seconds before a turn, for the other side's threads to fall asleep
BAND, ENOUGH = 10, 5  # GB/s; rounds
Sample = dict[str, float]
Pair = dict[str, Sample]  # by side; a round, too
Turn = Callable[[], Sample]


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


def measure(bench: Sequence[str], first_token: Sequence[str]) -> Sample:
    """One side of a pair."""
    out, _, peak = run(bench)
    (row,) = json.loads(out)
    _, load, _ = run(first_token)
    return {PP: row["avg_ts"], "load_seconds": load, "peak_gb": peak / 1e9}


def dali(file: Path, threads: int) -> Sample:
    tests = ["-p", str(PROMPT), "-n", "0", "-r", "1", "-o", "json", "-t", str(threads)]
    return measure(
        [sys.executable, "-m", "dali", "bench", str(file), *tests],
        [sys.executable, "-c", FIRST_TOKEN, str(file), str(threads)],
    )


def llama_cpp(bench: Path, file: Path, threads: int) -> Sample:
    command = [str(bench), "-m", str(file), "-t", str(threads), "-r", "1", "-o", "json"]
    return measure([*command, "-p", str(PROMPT), "-n", "0"], [*command, "-p", "0", "-n", "1", "--no-warmup"])


def dali_decoding(file: Path, threads: int) -> Turn:
    """dali's side of the rounds, loaded. Imported here, as neither side's process is to hold the other's library."""
    from dali import load
    from dali.measure import bench

    llm = load(file, threads=threads)
    bandwidth = bench.Bandwidth(llm)

    def turn() -> Sample:
        before = bandwidth() / 1e9
        (found,) = bench.measure(llm, [bench.Test(0, GENERATE)], 1)
        after = bandwidth() / 1e9
        assert found.token_bytes is not None
        read = {"gb_per_second_before": before, "gb_per_second_after": after}
        return {TG: found.speeds[0], "gb_per_token": found.token_bytes / 1e9, **read}

    return turn


def llama_cpp_decoder(file: Path, threads: int, context_length: int) -> Callable[[int, int], float]:
    """llama.cpp loaded, its options the default ones but for threads, context length and mapping. What is returned decodes
    `calls` times `at_once` random tokens, nothing kept from earlier ones, and tells the tokens a second."""
    import llama_cpp as library

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    library.llama_backend_init()
    reading = library.llama_model_default_params()
    reading.load_mode = library.llama_load_mode_from_str(b"none")
    model = library.llama_model_load_from_file(os.fsencode(file), reading)
    options = library.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = context_length, threads, threads
    context = model and library.llama_init_from_model(model, options)
    assert context, f"llama.cpp cannot use {file}"
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    draw = random.Random(0)

    def decode(calls: int, at_once: int) -> float:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        started = time.perf_counter()
        for _ in range(calls):
            tokens = (library.llama_token * at_once)(*draw.choices(range(vocabulary), k=at_once))
            status = library.llama_decode(context, library.llama_batch_get_one(tokens, at_once))
            assert status == 0, f"llama_decode returned {status}"
            library.llama_synchronize(context)
        return calls * at_once / (time.perf_counter() - started)

    return decode


def llama_cpp_decoding(file: Path, threads: int) -> Turn:
    """llama.cpp's side of the rounds, loaded."""
    decode = llama_cpp_decoder(file, threads, GENERATE)

    def turn() -> Sample:
        decode(WARM_UP, 1)
        return {TG: decode(GENERATE, 1)}

    return turn


def serve(asked: Connection, decoding: Callable[..., Turn], *arguments: object) -> None:
    """Load, say so, and take a turn whenever asked, until the asking process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process ends this one
    with suppress(EOFError, ConnectionError):
        turn = decoding(*arguments)
        asked.send(None)
        while True:
            asked.recv()
            asked.send(turn())


@contextmanager
def loaded(decoding: Callable[..., Turn], *arguments: object) -> Iterator[Turn]:
    """A side of the rounds in a process of its own, `decoding(*arguments)`, loaded: calling it takes a turn. SystemExit when it
    fails."""
    spawn = multiprocessing.get_context("spawn")
    connection, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, decoding, *arguments), daemon=True)

    def receive() -> Sample:
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            reason = f"{decoding.__name__} stopped with exit code {process.exitcode}; what it said is above."
            raise SystemExit(reason) from None

    def turn() -> Sample:
        time.sleep(PAUSE)
        with suppress(ConnectionError):  # receive() says so
            connection.send(None)
        return receive()

    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    try:
        receive()
        yield turn
    finally:
        process.kill()
        process.join()


def in_turn(first: int, count: int, ours: Turn, theirs: Turn) -> list[Pair]:
    """What both sides measured, `count` times. dali begins those with even numbers."""
    both = {"dali": ours, "llama_cpp": theirs}
    orders = [list(both) if number % 2 == 0 else list(both)[::-1] for number in range(first, first + count)]
    return [{name: both[name]() for name in order} for order in orders]


def add_roofline(both: Pair) -> Pair:
    ours = both["dali"]
    most = max(ours["gb_per_second_before"], ours["gb_per_second_after"]) / ours["gb_per_token"]
    for sample in both.values():
        sample[ROOFLINE] = 100 * sample[TG] / most
    return both


def decode(first: int, count: int, file: Path, threads: int) -> list[Pair]:
    """`count` rounds."""
    with loaded(dali_decoding, file, threads) as ours, loaded(llama_cpp_decoding, file, threads) as theirs:
        return [add_roofline(both) for both in in_turn(first, count, ours, theirs)]


def bands(rounds: list[Pair]) -> dict[str, list[Pair]]:
    """The rounds by the band of read bandwidth that they began and ended in, slowest first, where there are enough."""
    found: dict[int, list[Pair]] = {}
    for both in rounds:
        before, after = (int(both["dali"][f"gb_per_second_{when}"] // BAND) for when in ("before", "after"))
        if before == after:
            found.setdefault(before, []).append(both)
    return {
        f"{band * BAND}-{(band + 1) * BAND} GB/s": found[band]
        for band in sorted(found)
        if len(found[band]) >= ENOUGH
    }


def most_possible(rounds: list[Pair]) -> float:
    """The decoding ratio of reading every weight once a token at the read bandwidth without a pause."""
    return round(statistics.median(100 / both["llama_cpp"][ROOFLINE] for both in rounds), 2)


def row(kind: str, measured: str, samples: list[Pair], where: str = "") -> dict[str, Any]:
    ours, theirs = ([both[side][measured] for both in samples] for side in ("dali", "llama_cpp"))
    return {
        "file": kind,
        "measured": f"{measured} at {where}" if where else measured,
        "dali": round(statistics.median(ours), 2),
        "llama_cpp": round(statistics.median(theirs), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        "target": TARGETS[kind].get(measured),
        "most_possible": most_possible(samples) if measured == TG else None,
        "samples": len(samples),
    }


def rows_of(pairs: dict[str, list[Pair]], rounds: dict[str, list[Pair]]) -> list[dict[str, Any]]:
    rows = []
    for kind in TARGETS:
        if samples := pairs.get(kind):
            rows += [row(kind, measured, samples) for measured in (PP, "load_seconds", "peak_gb")]
        if samples := rounds.get(kind):
            for where, some in {"": samples, **bands(samples)}.items():
                rows += [row(kind, measured, some, where) for measured in (TG, ROOFLINE)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--types", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        parser.error("llama.cpp's Python package is not here: pip install llama-cpp-python")
    last = report.BENCHMARKS / "results" / f"{NAME}.json"
    result = json.loads(last.read_text()) if options.add else {"pairs": {}, "rounds": {}}
    pairs: dict[str, list[Pair]] = result["pairs"]
    rounds: dict[str, list[Pair]] = result["rounds"]
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types:
            file = (options.directory or Path(folder)) / f"olmoe-{kind.lower()}.gguf"
            if not file.is_file():
                random_gguf.write_random(file, random_gguf.Type[kind])
            samples = pairs.setdefault(kind, [])
            ours = partial(dali, file, options.threads)
            theirs = partial(llama_cpp, options.llama_bench, file, options.threads)
            samples += in_turn(len(samples), options.pairs, ours, theirs)
            if options.rounds:
                samples = rounds.setdefault(kind, [])
                samples += decode(len(samples), options.rounds, file, options.threads)
            if options.directory is None:
                file.unlink()
    rows = rows_of(pairs, rounds)
    report.table(rows)
    report.write(NAME, rows, threads=options.threads, pairs=pairs, rounds=rounds)


if __name__ == "__main__":
    main()
