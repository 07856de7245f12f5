"""How fast memory is read: by how many threads, and from huge pages or small ones."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle

import torch
from torch import Tensor

from dali.errors import DaliError
from dali.hardware.free_memory import available_ram
from dali.kernels import native
from dali.probe.reading import Clock, Reading, repeat
from dali.store.arena import Arena

LEAST, MOST = 2**28, 2**30  # bytes to read and compute from: more than caches hold, and not for long
CACHES = 8  # times the largest cache
PIECE = 2**27  # bytes of one reading


def pool_bytes(cache: int | None = None, free: int | None = None) -> int:
    """Bytes of memory to measure with. DaliError: there is too little that is free."""
    wanted = min(max(CACHES * (last_cache() if cache is None else cache), LEAST), MOST)
    free = available_ram() if free is None else free
    if 3 * wanted > free:
        raise DaliError(
            f"Measuring takes {3 * wanted / 2**20:.0f} MiB of memory, and {free / 2**20:.0f} MiB are free.",
            "Close other programs.",
        )
    return wanted


def last_cache() -> int:
    """Bytes of the largest cache; 0 where the system does not say."""
    found = 0
    with suppress(OSError, ValueError):
        for index in os.listdir("/sys/devices/system/cpu/cpu0/cache"):
            path = f"/sys/devices/system/cpu/cpu0/cache/{index}/size"
            with suppress(OSError), open(path) as file:
                text = file.read().strip()
                found = max(found, int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return found


def counts(most: int) -> list[int]:
    """Threads to measure with: 1, 2, 4 ... and all."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = native.threads()
    native.set_threads(count)
    try:
        yield
    finally:
        native.set_threads(before)


def small_pages(nbytes: int) -> Tensor:
    """Memory that is in no huge pages, uint8 [nbytes]."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def measure(pool: Arena, most: int, clock: Clock) -> tuple[dict[int, Reading], dict[int, Reading]]:
    """Threads -> bytes a second: from `pool`, in huge pages where the system has them, and from small pages."""
    everything = pool.all.flatten()
    found = []
    for memory in (everything, small_pages(min(len(everything), LEAST))):
        memory.fill_(1)
        found.append({count: _bandwidth(memory, count, clock) for count in counts(most)})
    return found[0], found[1]


def pace(pool: Arena) -> float:
    """Seconds of reading a piece by all threads; the fastest of a few, which other programs disturb least."""
    pieces = _round(pool.all.flatten())
    return min(native.read_seconds(next(pieces)) for _ in range(8))


def _bandwidth(memory: Tensor, count: int, clock: Clock) -> Reading:
    pieces, what = _round(memory), f"memory's bandwidth with {count} threads"
    with threads(count):
        seconds = repeat(what, lambda: native.read_seconds(next(pieces)), clock, seconds=0.3)
    return seconds.under(min(len(memory), PIECE))


def _round(memory: Tensor) -> Iterator[Tensor]:
    """Its pieces, over and over."""
    piece = min(len(memory), PIECE)
    yield from cycle([memory[at : at + piece] for at in range(0, len(memory) - piece + 1, piece)])
