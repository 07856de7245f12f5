"""How fast records of a store are read, and how many reads at a time that takes: measured when it is opened."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

from dali.store.arena import Arena
from dali.store.direct_io import DirectFile
from dali.store.packed.header import StoreHeader

# Reads at a time that are tried, one after another. One alone would leave the disk idle while its bytes are checked.
DEPTHS = 2, 4, 8, 16
SECONDS = 0.05  # of each trial, if a single read does not take longer
GAIN = 1.1  # what more of them have to bring
LEAST = 2**26  # bytes of a store that is worth a measurement


class Speed(NamedTuple):
    """`depth`: reads at a time; `bandwidth`: bytes a second with so many, None where that was not measured."""

    depth: int
    bandwidth: float | None


def measure_speed(path: Path, header: StoreHeader) -> Speed:
    """Of random records of the store at `path`. The depth is the least with which the disk is about as fast as with more.

    OSError: it cannot be opened. ReadError: it cannot be read.
    """
    if header.nbytes < LEAST:
        return Speed(4, None)
    file, arena, chance = DirectFile(path), Arena(DEPTHS[-1], header.record_bytes), Random(0)
    try:
        best = Speed(DEPTHS[0], 0.0)
        for depth in DEPTHS:
            with ThreadPoolExecutor(depth, thread_name_prefix="dali-trial") as pool:
                begin = time.perf_counter()
                until = begin + SECONDS
                indexes = [chance.randrange(header.records) for _ in range(depth)]
                jobs = [(file, header, arena, place, index, until) for place, index in enumerate(indexes)]
                nbytes = sum(pool.map(_read, *zip(*jobs, strict=True)))
            bandwidth = nbytes / (time.perf_counter() - begin)
            if best.bandwidth is not None and bandwidth > GAIN * best.bandwidth:
                best = Speed(depth, bandwidth)
        return best
    finally:
        file.close()


def _read(file: DirectFile, header: StoreHeader, arena: Arena, place: int, first: int, until: float) -> int:
    """Records from the `first` on, one after another but at least one, until it is time; their bytes."""
    nbytes, memory, step = 0, arena[place].numpy().data, header.records // 7 or 1
    while not nbytes or time.perf_counter() < until:
        size = header.size_of(first)
        file.read(memory[:size], header.record_offset(first), f"record {first}")
        nbytes, first = nbytes + size, (first + step) % header.records
    return nbytes
