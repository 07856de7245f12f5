"""Reading files past the page cache, where a second copy of the experts would take the memory that they need themselves."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

from dali.kernels.formats import round_up
from dali.store.arena import Arena

PAGE = 4096  # offsets, lengths and addresses of reads past the page cache are multiples of it
HUGE_PAGE = 2**21
RING = 8 * HUGE_PAGE  # bytes
PROBES = 64


class ReadError(Exception):
    """Bytes that should be in a file cannot be had; str() says why, in words that follow "the file ...: "."""


class DirectFile:
    """An open file. Reads go past the page cache wherever its file system allows that. OSError: it cannot be opened."""

    def __init__(self, path: Path, unless_cached: bool = False) -> None:
        """`unless_cached`: read through the page cache if most of the file is there already, which is faster."""
        self._descriptor = os.open(path, os.O_RDONLY)
        self.direct = False  # whether they do
        if hasattr(os, "O_DIRECT") and not (unless_cached and _is_cached(self._descriptor)):
            with suppress(OSError):  # a file system without such reads
                direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
                os.close(self._descriptor)
                self._descriptor, self.direct = direct, True

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, into: memoryview, offset: int, what: str, needed: int | None = None) -> None:
        """Fill `into`, or at least its first `needed` bytes, from `offset` on; its address, its length and `offset` are multiples
        of PAGE. ReadError names `what` the bytes are. Any thread may call it at any time."""
        done, needed = 0, len(into) if needed is None else needed
        while done < needed:
            try:
                count = os.preadv(self._descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise ReadError(f"{what} cannot be read ({error.strerror or error})") from error
            if count == 0:
                raise ReadError(f"it ends inside {what}: it has changed since it was opened")
            done += count

    def read_range(self, ring: Ring, offset: int, size: int, what: str) -> memoryview:
        """`size` bytes from any `offset` on, in memory of `ring`: valid until its next call. ReadError as in `read`."""
        start = offset - offset % PAGE
        end = offset - start + size
        memory = ring.take(round_up(end, PAGE))
        self.read(memory, start, what, end)
        return memory[offset - start : end]


class PlainFile(DirectFile):
    """An open file that is read through the page cache as experts are where that is faster: all of a read is under way at once,
    nothing beyond it is read, and the cache is told to forget it. OSError: it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._descriptor, self.direct = os.open(path, os.O_RDONLY), False
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, into: memoryview, offset: int, what: str, needed: int | None = None) -> None:
        os.posix_fadvise(self._descriptor, offset, len(into), os.POSIX_FADV_WILLNEED)
        super().read(into, offset, what, needed)
        os.posix_fadvise(self._descriptor, offset, len(into), os.POSIX_FADV_DONTNEED)


class Ring:
    """Page-aligned memory for one thread to read into.

    In huge pages, as a disk's requests hold few pieces of memory each: scattered small pages halve its speed. A ring, as bytes
    that a core has just read are slow to be written to by anyone else (measured: 1.6 GB/s against 2.6).
    """

    def __init__(self) -> None:
        self._arena = Arena(1, RING)
        self._next = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes; those of the calls before may be overwritten."""
        if self._arena.nbytes < size:
            self._arena, self._next = Arena(1, round_up(size, HUGE_PAGE)), 0
        begin = self._next if self._next + size <= self._arena.nbytes else 0
        self._next = begin + round_up(size, HUGE_PAGE)
        memory: memoryview = self._arena[0].numpy().data
        return memory[begin : begin + size]


def _is_cached(descriptor: int) -> bool:
    """Whether the page cache holds most of a file, by looking for some of its pages."""
    size, cached, byte = os.fstat(descriptor).st_size, 0, bytearray(1)
    if not size or not hasattr(os, "RWF_NOWAIT"):
        return False
    for _ in range(PROBES):  # anywhere: a probe has its own page read in
        with suppress(OSError):  # not there
            cached += os.preadv(descriptor, [byte], random.randrange(size), os.RWF_NOWAIT)
    return cached > PROBES * 0.9
