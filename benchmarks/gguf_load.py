"""How fast a GGUF model comes into memory, cold, beside what the disk gives.

    python benchmarks/gguf_load.py FILE [--rounds N]

In turn, each with the file out of the page cache: reading it past the cache into one buffer (the disk alone) and into as
much fresh memory, writing fresh memory without the disk, then dali's own loading: experts repacked into
RAM, dense weights decoded.
Importing transformers and building the model are left out. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import report
from dali.engine.gguf.load import GgufModel

CHUNK = 2**22
READERS = 6


def forget(path: Path) -> None:
    """Put the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_past_cache(path: Path, fresh: bool) -> float:
    """Seconds to read the file with O_DIRECT, into fresh memory or into buffers used again."""
    forget(path)
    size = path.stat().st_size // CHUNK * CHUNK
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, size if fresh else READERS * CHUNK)
    if fresh:
        memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory.write(b"\1" * len(memory))
    view = memoryview(memory)

    def read(reader: int) -> None:
        for offset in range(reader * CHUNK, size, READERS * CHUNK):
            begin = offset if fresh else reader * CHUNK
            os.preadv(descriptor, [view[begin : begin + CHUNK]], offset)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return seconds / size


def touch(path: Path) -> float:
    """Seconds a byte to write as much fresh memory once, from two threads: what a virtual machine's host may take to give it."""
    size = path.stat().st_size
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    halves = torch.frombuffer(memory, dtype=torch.uint8).chunk(2)
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: half.fill_(1), halves))
    return (time.perf_counter() - began) / size


def load(path: Path) -> float:
    forget(path)
    model = GgufModel(path)
    began = time.perf_counter()
    layouts = model.experts.layouts(None)
    experts = model.experts.read_all(layouts, lambda nbytes: None)
    linears = model.dense.read_linears(lambda nbytes: None)
    dense = model.dense.read_all(torch.float32, lambda nbytes: None, packed=linears)
    seconds = time.perf_counter() - began
    assert len(experts.records) == len(layouts)
    assert dense
    return seconds / (model.experts.nbytes + model.dense.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ways = {
        "disk, into one buffer": lambda: read_past_cache(options.file, fresh=False),
        "disk, into fresh memory": lambda: read_past_cache(options.file, fresh=True),
        "fresh memory, written once": lambda: touch(options.file),
        "dali: experts and dense weights": lambda: load(options.file),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "way": name,
            "gb_per_s": round(1e-9 / medians[name], 3),
            "slowest": round(1e-9 / max(times), 3),
            "fastest": round(1e-9 / min(times), 3),
            "of_disk": round(medians["disk, into one buffer"] / medians[name], 2),
        }
        for name, times in seconds.items()
    ]
    report.table(rows)
    types = sorted({tensor.type.name for tensor in GgufModel(options.file).gguf.tensors.values()})
    report.write(
        f"gguf_load_{options.file.stem.lower()}",
        rows,
        file_gib=round(options.file.stat().st_size / 2**30, 2),
        types=types,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
