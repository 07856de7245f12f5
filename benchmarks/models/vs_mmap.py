"""A model larger than the memory that it may take: dali's `--ram` beside llama.cpp, which maps the file.

    python benchmarks/models/vs_mmap.py FOLDER TRACE.npz --llama-server LLAMA_SERVER [--types Q8_0 Q4_0] [--shares 25 50 75]
                                        [--routings recorded uniform] [--seconds 12] [--read-ahead 128]

In FOLDER models of OLMoE-1B-7B's shape are written, one after another (7.4 GB as Q8_0, 4 GB as Q4_0, and as much again for
dali's store; deleted when measured, unless --keep). Where their tokens are routed, and which follows which, is decided in them
(walk_gguf.py): as TRACE recorded it of OLMoE-1B-7B, or uniformly. Nothing is hooked into either program: `dali serve` and
`llama-server`, same file, same prompt of 512 tokens (uniformly routed), greedy, one after another, each in a control group whose
limit is a share of the file's size and counts the page cache. The page cache is dropped before. `--ram` is exactly the limit.

Either answers for so many seconds or until the walk ends; speeds are over the tokens that both got to, all else over its own.
`of_bound`: of dali's seconds, those that the disk alone would take for the experts that RAM lacked, at the bandwidth of O_DIRECT
reads of 4 MiB, eight at a time, measured before and after its turn, or of its own reads while any is under way: the fastest of
these. `mb_token`: megabytes read a token, as the kernel counts them.

--read-ahead sets for the time being how far the kernel reads ahead of page faults on FOLDER's device (as root): 128 is what Linux
begins with; some virtual machines have 8192, with which every fault reads megabytes, wanted or not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import http.client
import json
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import numpy as np

import report
import walk_gguf
from memory_group import MemoryGroup

SHAPE = walk_gguf.Shape()
PROMPT, MOST, FEWEST = 512, 298, 8  # tokens; the fewest are given three times as long
CONTEXT = 832
CHUNK, DEPTH, PROBE_SECONDS = 4 * 2**20, 8, 1.0
START, LONGEST = 180, 300  # seconds in which a server has to be there, and in which it has to say something
PORT = 8419
DROP = Path("/proc/sys/vm/drop_caches")
SHOWN = (
    *("file", "share", "limit_mib", "routing", "tokens", "dali", "llama_cpp", "ratio"),
    *("dali_prompt", "llama_cpp_prompt", "hit_rate", "of_bound", "dali_peak_mib", "llama_cpp_peak_mib"),
    *("dali_mb_token", "llama_cpp_mb_token", "same_tokens", "dali_failed", "llama_cpp_failed"),
)
READ_AHEAD = "/sys/dev/block/{}:{}/{}queue/read_ahead_kb"


@dataclass
class Turn:
    """What a server did. `times`: of each token, in seconds from the request."""

    failed: str = ""
    ready: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_bytes: int = 0  # read from the disk
    answer_bytes: int = 0
    peak: int = 0  # of the group
    resident: int = 0  # of the process, shared pages included
    counted: dict[str, float] = field(default_factory=dict)  # dali's own, while it answered
    bandwidth: float = 0.0  # of the disk, bytes a second
    flags: str = ""


def walks_of(trace: Path) -> dict[str, walk_gguf.Ids]:
    ids = np.load(trace)["ids"][: MOST + 1]
    drawn = {"uniform": (len(ids), 1), "prompt": (PROMPT - 1, 2)}
    return {"recorded": ids} | {name: walk_gguf.uniform(n, SHAPE, seed) for name, (n, seed) in drawn.items()}


def disk_bandwidth(file: Path) -> float:
    """Bytes a second of random reads past the page cache."""
    handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
    chunks = file.stat().st_size // CHUNK
    until = time.perf_counter() + PROBE_SECONDS

    def read(seed: int) -> int:
        chance, memory, nbytes = random.Random(seed), mmap.mmap(-1, CHUNK), 0
        while time.perf_counter() < until:
            nbytes += os.preadv(handle, [memory], chance.randrange(chunks) * CHUNK)
        return nbytes

    try:
        began = time.perf_counter()
        with ThreadPoolExecutor(DEPTH) as pool:
            return sum(pool.map(read, range(DEPTH))) / (time.perf_counter() - began)
    finally:
        os.close(handle)


def forget(files: Sequence[Path]) -> None:
    """Drop files from the page cache, and all else where that is allowed."""
    os.sync()
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    with contextlib.suppress(OSError):
        DROP.write_text("1")


@contextlib.contextmanager
def read_ahead(folder: Path, kib: int | None) -> Iterator[int | None]:
    """How much the kernel reads ahead of who maps a file in `folder`, in KiB; `kib` meanwhile, if given. PermissionError: it may
    not be set."""
    device = folder.stat().st_dev
    names = (READ_AHEAD.format(os.major(device), os.minor(device), part) for part in ("", "../"))
    path = next((Path(name) for name in names if Path(name).exists()), None)
    if path is None:
        yield None
        return
    before = path.read_text()
    if kib is not None:
        path.write_text(str(kib))
    try:
        yield int(path.read_text())
    finally:
        if kib is not None:
            path.write_text(before)


def get(path: str) -> str:
    """OSError: it does not answer, or not with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"status {answer.status}")
    return text


def metrics() -> dict[str, float]:
    """dali's counters, summed over layers; none of llama-server's."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for line in get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            if match := re.match(
                r'dali_((?:ram_lookups|disk)\w*)_total(?:\{.*?(?:result="(\w+)".*)?\})?$', name
            ):
                key = match[2] or match[1]
                found[key] = found.get(key, 0) + float(value)
    return found


def read_bytes(process: int) -> int:
    """From the disk, for the process: by its reads and its page faults."""
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def resident_peak(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def pieces(prompt: list[int]) -> Iterator[str]:
    """The answer's text as it comes. OSError, HTTPException: the server has gone."""
    body = {"prompt": prompt, "max_tokens": MOST, "temperature": 0, "stream": True, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LONGEST)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body | {"cache_prompt": False}), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"status {answer.status}: {answer.read()[:200]!r}")
        for line in answer:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices")
                if choices and choices[0].get("text"):
                    yield choices[0]["text"]
    finally:
        connection.close()


def answer(process: int, prompt: list[int], seconds: float, turn: Turn) -> None:
    """Fill in the turn of a server that is ready. Its tokens' texts are their numbers, each behind a space."""
    before, began, text = read_bytes(process), time.perf_counter(), ""
    counted: dict[str, float] = {}
    for piece in pieces(prompt):
        now = time.perf_counter() - began
        if not turn.times:
            turn.prompt_bytes, counted = read_bytes(process) - before, metrics()
        text += piece
        turn.tokens = [int(number) for number in re.findall(r"\d+", text)]
        turn.times += [now] * (len(turn.tokens) - len(turn.times))
        if now - turn.times[0] > (seconds if len(turn.times) > FEWEST else 3 * seconds):
            break
    turn.answer_bytes = read_bytes(process) - before - turn.prompt_bytes
    turn.counted = {name: value - counted[name] for name, value in metrics().items()}
    turn.resident = resident_peak(process)


def take_turn(command: Sequence[str], limit: int, prompt: list[int], seconds: float, log: Path) -> Turn:
    """Start a server in a group of its own, ask it, end it."""
    turn, group = Turn(), MemoryGroup(limit)
    began = time.perf_counter()
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=group.join())
        try:
            while server.poll() is None and time.perf_counter() - began < START:
                with contextlib.suppress(OSError):
                    get("/health")
                    turn.ready = time.perf_counter() - began
                    break
                time.sleep(0.1)
            if turn.ready:
                answer(server.pid, prompt, seconds, turn)
        except (OSError, http.client.HTTPException) as error:
            time.sleep(0.5)  # for it to be gone, if it is
            turn.failed = str(error) or type(error).__name__
        finally:
            code, turn.peak = server.poll(), group.peak
            if code is None:
                server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            killed = group.kills
            group.close()
    if killed:
        turn.failed = "killed"
    elif code is not None:
        turn.failed = f"exit {code}: {' '.join(log.read_text().strip().splitlines()[-2:])[:200]}"
    elif not turn.ready:
        turn.failed = f"not ready after {START} s"
    return turn


def dali_turn(file: Path, cache: Path, limit: int, options: argparse.Namespace, prompt: list[int]) -> Turn:
    flags = ["--ram", str(limit), "--ctx-size", str(CONTEXT), "--cache-ram", "0", "--cache-type", "q8"]
    command = [sys.executable, "-m", "dali", "serve", str(file), "--port", str(PORT), *flags]
    os.environ["DALI_CACHE_DIR"] = str(cache)
    command += ["--threads", str(options.threads), "--parallel", "1"]
    stores = [path for path in cache.rglob("*") if path.is_file()]
    before = disk_bandwidth(file)
    forget([file, *stores])
    turn = take_turn(command, limit, prompt, options.seconds, options.folder / "dali.log")
    turn.bandwidth = max(before, disk_bandwidth(file))
    return turn


def llama_turn(file: Path, cache: Path, limit: int, options: argparse.Namespace, prompt: list[int]) -> Turn:
    """With its default options, or, if it is killed then, without what copies weights."""
    flags = ["-c", str(CONTEXT), "--cache-ram", "0", "-ctk", "q8_0", "-ctv", "q8_0", "-np", "1"]
    command = [str(options.llama_server), "-m", str(file), "--port", str(PORT), *flags]
    command += ["-t", str(options.threads)]
    turn = Turn()
    for further in ([], ["--no-repack"]):
        forget([file])
        log = options.folder / "llama.log"
        turn = take_turn([*command, *further], limit, prompt, options.seconds, log)
        turn.flags = " ".join(further)
        if turn.failed != "killed":
            break
    return turn


def speed(turn: Turn, tokens: int) -> float | None:
    """Of the answer's first so many tokens, without the first one, which the prompt gives."""
    return (tokens - 1) / (turn.times[tokens - 1] - turn.times[0]) if tokens > 1 else None


def row_of(cell: dict[str, Any], ours: Turn, theirs: Turn, expected: list[int]) -> dict[str, Any]:
    reached = [len(turn.times) for turn in (ours, theirs) if turn.times]
    shared = min(reached, default=0)
    speeds = [speed(turn, min(shared, len(turn.times))) for turn in (ours, theirs)]
    row: dict[str, Any] = cell | {"tokens": shared, "dali": speeds[0], "llama_cpp": speeds[1]}
    row["ratio"] = speeds[0] / speeds[1] if speeds[0] and speeds[1] else None
    for name, turn in (("dali", ours), ("llama_cpp", theirs)):
        row[f"{name}_prompt"] = PROMPT / turn.times[0] if turn.times else None
    row |= {"hit_rate": None, "of_bound": None}
    lookups, misses = ours.counted.get("hit", 0) + ours.counted.get("miss", 0), ours.counted.get("miss", 0)
    if lookups:
        row["hit_rate"] = 1 - misses / lookups
        steps = lookups / (SHAPE.layers * SHAPE.top_k)
        seconds = (ours.times[-1] - ours.times[0]) / (len(ours.times) - 1)  # a token
        seen = ours.counted["disk_read_bytes"] / max(ours.counted["disk_busy_seconds"], 1e-9)
        fastest = max(ours.bandwidth, seen)
        row["of_bound"] = misses / steps * cell["expert_mib"] * 2**20 / fastest / seconds
        row["dali_disk_gb_s"] = seen / 1e9
    row["disk_gb_s"] = ours.bandwidth / 1e9
    for name, turn in (("dali", ours), ("llama_cpp", theirs)):
        row |= {
            f"{name}_mb_token": turn.answer_bytes / 1e6 / max(len(turn.times), 1),
            f"{name}_peak_mib": turn.peak >> 20,
            f"{name}_resident_mib": turn.resident >> 20,
            f"{name}_ready_s": turn.ready,
            f"{name}_failed": turn.failed,
        }
    row["llama_cpp_flags"] = theirs.flags
    told = [turn.tokens for turn in (ours, theirs) if turn.tokens]
    row["same_tokens"] = bool(told) and all(tokens == expected[: len(tokens)] for tokens in told)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def pack(file: Path, cache: Path, limit: int, log: Path) -> None:
    """Have dali write its store, outside of any limit. SystemExit: it cannot."""
    os.environ["DALI_CACHE_DIR"] = str(cache)
    code = "import sys, dali; dali.load(sys.argv[1], ram=int(sys.argv[2]), ctx_size=512, cache_ram=0)"
    done = subprocess.run([sys.executable, "-c", code, str(file), str(limit)], capture_output=True, text=True)
    log.write_text(done.stderr)
    if done.returncode:
        sys.exit(done.stderr)


@contextlib.contextmanager
def model(
    kind: str, walks: dict[str, walk_gguf.Ids], options: argparse.Namespace
) -> Iterator[tuple[Path, Path, int]]:
    """The file of one type, dali's cache with its store, and the file's bytes; deleted afterwards unless kept."""
    file, cache = options.folder / f"walk-{kind.lower()}.gguf", options.folder / f"cache-{kind.lower()}"
    if not file.exists():
        walk_gguf.write_walks(file, walk_gguf.Type[kind], list(walks.values()), SHAPE)
        gc.collect()
    size = file.stat().st_size
    pack(file, cache, size // 2, options.folder / "pack.log")
    yield file, cache, size
    if not options.keep:
        file.unlink()
        shutil.rmtree(cache)


def measure(
    kind: str, walks: dict[str, walk_gguf.Ids], options: argparse.Namespace, first: int
) -> list[dict[str, Any]]:
    """The cells of one file. Who begins alternates, `first` cells having been measured before."""
    tokens = dict(zip(walks, walk_gguf.tokens_of(list(walks.values())), strict=True))
    per_value = walk_gguf.gguf.GGML_QUANT_SIZES[walk_gguf.Type[kind]]
    expert = 3 * SHAPE.hidden * SHAPE.intermediate * per_value[1] / per_value[0]
    rows: list[dict[str, Any]] = []
    with model(kind, walks, options) as (file, cache, size):
        for share in options.shares:
            for routing in options.routings:
                limit = size * share // 100 // 2**20 * 2**20
                prompt = [*tokens["prompt"], tokens[routing][0]]
                sides = [dali_turn, llama_turn]
                order = sides if (first + len(rows)) % 2 == 0 else sides[::-1]
                turns = {side: side(file, cache, limit, options, prompt) for side in order}
                cell = {"file": kind, "share": share, "routing": routing, "limit_mib": limit >> 20}
                cell["expert_mib"] = round(expert / 2**20, 3)
                rows.append(row_of(cell, turns[dali_turn], turns[llama_turn], tokens[routing][1:]))
                print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What a benchmark of these files is told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--types", nargs="+", choices=["Q8_0", "Q4_0"], default=["Q8_0", "Q4_0"])
    parser.add_argument("--shares", nargs="+", type=int, default=[25, 50, 75])
    parser.add_argument("--keep", action="store_true")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument(
        "--routings", nargs="+", choices=["recorded", "uniform"], default=["recorded", "uniform"]
    )
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read-ahead", type=int, metavar="KIB")
    options = parser.parse_args()
    try:
        MemoryGroup(2**30).close()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    options.folder.mkdir(parents=True, exist_ok=True)
    walks = walks_of(options.trace)
    rows: list[dict[str, Any]] = []
    with read_ahead(options.folder, options.read_ahead) as kib:
        settings = {"trace": options.trace.name, "threads": options.threads, "read_ahead_kib": kib}
        for kind in options.types:
            rows += measure(kind, walks, options, len(rows))
            report.write("vs_mmap", rows, **settings)  # as far as it has come: the next file takes minutes
    report.table([{key: row[key] for key in SHOWN} for row in rows])


if __name__ == "__main__":
    main()
