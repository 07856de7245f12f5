"""How fast a GGUF model comes into memory, cold, beside what the disk gives.

    python benchmarks/models/gguf_load.py FILE... [--rounds N]

In turn, each with the file out of the page cache: reading it past the cache into one buffer a thread (the disk alone, at its
best) and into as much memory as the file has; the same reads by dali's reader, each byte copied once into other memory by numpy
and no more; then dali's own loading: experts repacked into RAM, dense weights packed or decoded, in one pass. Memory is what the
process already has (written once before), or fresh: a virtual machine's host may take long to give it, and no loader can change
that. Importing transformers and building the model are left out. Medians over the rounds; of_disk is the median of the rounds'
ratios to the first way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import report
from dali.kernels.formats import round_up
from dali.loading.gguf.model import GgufModel
from dali.store.arena import Arena
from dali.store.gguf.blocks import Bytes
from dali.store.gguf.pack import Losses
from dali.store.gguf.reader import Reading, read

CHUNK = 2**20
READERS = 6
TARGET = 0.7
COPIES = 2**26  # bytes a thread, beyond any cache

_copies = local()


def forget(path: Path) -> None:
    """Put the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_past_cache(path: Path, memory: Tensor) -> float:
    """Bytes a second of reading the file with O_DIRECT into `memory`: a chunk a reader, or all of it."""
    forget(path)
    size = path.stat().st_size // CHUNK * CHUNK
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    view = memoryview(memory.numpy())

    def read(reader: int) -> None:
        for offset in range(reader * CHUNK, size, READERS * CHUNK):
            begin = offset if len(view) >= size else reader * CHUNK
            os.preadv(descriptor, [view[begin : begin + CHUNK]], offset)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return size / seconds


def buffers(nbytes: int, fresh: bool) -> Tensor:
    """Memory as dali's experts have it, written once unless `fresh`."""
    memory = Arena(1, nbytes)[0]
    return memory if fresh else memory.fill_(1)


def copy(raw: Bytes) -> None:
    """Into memory of this thread's, which is written round and round."""
    room: Bytes | None = getattr(_copies, "room", None)
    if room is None:
        room, _copies.begin = buffers(COPIES, False).numpy(), 0
        _copies.room = room
    begin = _copies.begin if _copies.begin + raw.nbytes <= COPIES else 0
    room[begin : begin + raw.nbytes] = raw.reshape(-1)
    _copies.begin = begin + raw.nbytes


def load(model: GgufModel, fresh: bool, copied: bool = False) -> float:
    """Bytes a second of all that `GgufModel.read` reads; `copied`: what is read is copied once, not repacked."""
    forget(model.gguf.path)
    experts = model.experts.read(model.experts.layouts(None))
    linears = model.dense.read_packed(Losses())
    dense = model.dense.read(torch.float32, packed=True)
    if not fresh:
        for record in (record for layer in experts.finish().records for record in layer):
            record.zero_()
        for tensor in (*(packed for packed, _ in linears.finish().values()), *dense.finish().values()):
            tensor.zero_()
    readings: list[Reading[Any]] = [experts, linears, dense]
    if copied:
        copies = [[replace(job, take=copy) for job in reading.jobs] for reading in readings]
        readings = [Reading(jobs, lambda: None) for jobs in copies]
    nbytes = sum(job.count * job.tensor.row_bytes for reading in readings for job in reading.jobs)
    began = time.perf_counter()
    read(readings, lambda nbytes: None)
    return nbytes / (time.perf_counter() - began)


def measure(file: Path, rounds: int) -> list[dict[str, Any]]:
    model, size = GgufModel(file), round_up(file.stat().st_size, CHUNK)
    ways = {
        "disk, into one buffer": lambda: read_past_cache(file, buffers(READERS * CHUNK, False)),
        "disk, into memory it has": lambda: read_past_cache(file, buffers(size, False)),
        "disk, each byte copied": lambda: load(model, False, copied=True),
        "dali, into memory it has": lambda: load(model, False),
        "disk, into fresh memory": lambda: read_past_cache(file, buffers(size, True)),
        "dali, into fresh memory": lambda: load(model, True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            speeds[name].append(way())
    types = {tensor.type.name for tensor in model.gguf.tensors.values()} - {"F32"}
    return [
        row("+".join(sorted(types)), name, times, speeds["disk, into one buffer"])
        for name, times in speeds.items()
    ]


def row(kind: str, way: str, speeds: Sequence[float], disk: Sequence[float]) -> dict[str, Any]:
    """One row; `speeds` and `disk` in bytes a second, a figure a round."""
    ratio = statistics.median(ours / its for ours, its in zip(speeds, disk, strict=True))
    return {
        "file": kind,
        "way": way,
        "gb_per_s": round(statistics.median(speeds) * 1e-9, 3),
        "slowest": round(min(speeds) * 1e-9, 3),
        "fastest": round(max(speeds) * 1e-9, 3),
        "of_disk": round(ratio, 2),
        "target": TARGET if way.startswith("dali") else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [row for file in options.files for row in measure(file, options.rounds)]
    report.table(rows)
    report.write("gguf_load", rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
