"""The disk that dali's cache lies on: whole records at random places, past the page cache and through it, by reads under way at
once."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from dali.compiled import library
from dali.errors import DaliError
from dali.probe.reading import Clock, Reading, reading_of, repeat
from dali.store.arena import Arena
from dali.store.direct_io import PAGE, DirectFile, PlainFile, ReadError
from dali.store.packed.speed import DEPTHS, GAIN

FILE = 2**29  # bytes that are written, and read at random places
SPARE = 4  # times as many must be free
RECORD = 2_654_208 // PAGE * PAGE  # bytes of a read: an expert of Qwen3-30B-A3B in w4
SMALL = 32  # reads of a page, of which a reading of the latency is made
NAME = "measuring-"
LEFT = 3600  # seconds after which a file of that name is one that somebody was killed over
TRIAL, ROUNDS = 0.15, 5  # seconds of one reading of the bandwidth, and readings of each


class NotMeasured(Exception):
    """The disk cannot be measured; str() is a sentence that says why."""


@dataclass
class Disk:
    """By reads under way at once, bytes a second and seconds of each read; `latency` of a page; `check`: bytes a second of
    checksums; `direct`: past the page cache; `plain`: bytes a second through it, none where it cannot be told to forget."""

    direct: bool
    latency: Reading
    check: Reading
    bandwidths: dict[int, Reading] = field(default_factory=dict)
    plain: dict[int, Reading] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # of `plain`, and why

    @property
    def depth(self) -> int:
        """The least with which the disk is about as fast as with more."""
        return least(self.bandwidths)

    def seconds(self, depth: int) -> float:
        """Of one read while so many are under way."""
        return depth * RECORD / self.bandwidths[depth].value


def least(bandwidths: dict[int, Reading]) -> int:
    """Of reads under way at once, with which the disk is about as fast as with more."""
    best = min(bandwidths)
    for depth, reading in bandwidths.items():
        if reading.value > GAIN * bandwidths[best].value:
            best = depth
    return best


@contextmanager
def trial_file(folder: Path) -> Iterator[Path]:
    """A file of FILE bytes that no cache holds, gone afterwards whatever happens. NotMeasured: it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        free = shutil.disk_usage(folder).free
        if free < SPARE * FILE:
            raise NotMeasured(
                f"The disk of {folder} has {free / 2**30:.1f} GiB free, and measuring it takes {SPARE * FILE / 2**30:.0f}."
            )
        descriptor, name = tempfile.mkstemp(prefix=NAME, dir=folder)
    except OSError as error:
        raise NotMeasured(f"Nothing can be written to {folder} ({error.strerror or error}).") from error
    try:
        try:
            _fill(descriptor)
        except OSError as error:
            raise NotMeasured(
                f"{folder} took no {FILE / 2**20:.0f} MiB ({error.strerror or error})."
            ) from error
        finally:
            os.close(descriptor)
        yield Path(name)
    finally:
        os.unlink(name)


def measure(path: Path, clock: Clock, pool: Arena) -> Disk:
    """Into `pool`, more of which is read than caches hold: what lies in one is written sooner. NotMeasured: it cannot be read."""
    files: list[DirectFile] = []
    try:
        files.append(DirectFile(path))
        if hasattr(os, "posix_fadvise"):
            files.append(PlainFile(path))
        ways = [Reads(file, path, clock, pool.all.flatten()) for file in files]
        latency = repeat("the disk's latency", ways[0].latency, clock)
        found = Disk(files[0].direct, latency, repeat("checksums", ways[0].check, clock))
        speeds: dict[tuple[int, int], list[float]] = {}
        for _ in range(ROUNDS):  # in turn, so that what others do to the disk meanwhile hits all alike
            for depth in DEPTHS:
                for way, reads in enumerate(ways):
                    speeds.setdefault((way, depth), []).append(reads.bandwidth(depth))
        for (way, depth), values in speeds.items():
            what = f"the disk's bandwidth{', through the page cache' * way}, {depth} reads at once"
            if not way:
                found.bandwidths[depth] = reading_of(what, values)
                continue
            try:
                found.plain[depth] = reading_of(what, values)
            except DaliError as error:  # too far apart: the others stand all the same
                found.left_out.append(error.problem)
        return found
    except OSError as error:
        raise NotMeasured(f"{path} cannot be read ({error.strerror or error}).") from error
    except ReadError as error:
        raise NotMeasured(f"{path}: {error}.") from error
    finally:
        for file in files:
            file.close()


class Reads:
    """Reads of one file at random places, into one part of `memory` [bytes] after another."""

    def __init__(self, file: DirectFile, path: Path, clock: Clock, memory: Tensor) -> None:
        self._file, self._path, self._clock, self._chance = file, path, clock, Random(0)
        self._size, count = path.stat().st_size, len(memory) // RECORD
        self._places = cycle(memory[: count * RECORD].view(count, RECORD))

    def latency(self) -> float:
        """Seconds of a page."""
        self._forget()
        memory = next(self._places)[:PAGE].numpy().data
        begin = self._clock()
        for _ in range(SMALL):
            self._file.read(memory, self._chance.randrange(self._size // PAGE) * PAGE, "a page")
        return (self._clock() - begin) / SMALL

    def bandwidth(self, depth: int) -> float:
        """Bytes a second of records."""
        self._forget()
        with ThreadPoolExecutor(depth, thread_name_prefix="dali-probe") as pool:
            begin = self._clock()
            chances = [Random(self._chance.random()) for _ in range(depth)]
            nbytes = sum(pool.map(self._some, chances, [begin + TRIAL] * depth))
        return nbytes / (self._clock() - begin)

    def check(self) -> float:
        """Bytes a second of checksums of records that were just read, as many as are read for one layer: no cache has all."""
        self._forget()
        records = [self.one() for _ in range(DEPTHS[-1])]
        begin = self._clock()
        for record in records:
            library.xxh3(record.data_ptr(), RECORD)
        return len(records) * RECORD / max(self._clock() - begin, 1e-9)

    def one(self) -> Tensor:
        """A record at a random place."""
        return self._read(self._chance)

    def _some(self, chance: Random, until: float) -> int:
        """Records one after another, but at least one, until it is time; their bytes."""
        nbytes = 0
        while not nbytes or self._clock() < until:
            nbytes += len(self._read(chance))
        return nbytes

    def _read(self, chance: Random) -> Tensor:
        memory: Tensor = next(self._places)
        offset = chance.randrange((self._size - RECORD) // PAGE) * PAGE
        self._file.read(memory.numpy().data, offset, "a record")
        return memory

    def _forget(self) -> None:
        if not self._file.direct:
            _drop(self._path)


def _clear(folder: Path) -> None:
    """Delete what measurements that were killed have left."""
    for file in folder.glob(f"{NAME}*"):
        with suppress(OSError):  # another's
            if time.time() - file.stat().st_mtime > LEFT:
                file.unlink()


def _fill(descriptor: int) -> None:
    """Bytes that no disk can squeeze, on the disk and in no cache."""
    piece = 2**24
    for index in range(FILE // piece):
        view = _noise(piece, index).numpy().data
        while view:
            view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _noise(nbytes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**62), 2**62, (nbytes // 8,), generator=generator).view(torch.uint8)


def _drop(path: Path) -> None:
    """Have the system forget what it keeps of a file."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
