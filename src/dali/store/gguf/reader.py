"""Reading a GGUF model's bytes in one pass: several reads at a time, from the page cache where it has them, else past it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, local
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dali.kernels.formats import round_up
from dali.store.arena import Arena, populate
from dali.store.gguf.blocks import Bytes
from dali.store.gguf.header import GgufTensor, damaged

THREADS = 6  # some wait for the disk while others repack
PAGE, HUGE_PAGE = 4096, 2**21
RING = 8 * HUGE_PAGE  # bytes a thread
PROBES = 64
PROVIDED = 2**25  # bytes of memory asked for at a time: nobody waits long for that

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """`count` rows of a tensor from row `begin`, and who takes them: uint8 [count, row bytes], valid during the call."""

    tensor: GgufTensor
    begin: int
    count: int
    take: Callable[[Bytes], None]

    @property
    def place(self) -> tuple[Path, int]:
        return self.tensor.path, self.tensor.offset + self.begin * self.tensor.row_bytes


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What to read, and what has come of it once all jobs are done. `memory`: what the jobs fill, roughly in that order."""

    jobs: list[Job]
    finish: Callable[[], T]
    memory: Sequence[Tensor] = ()


class GgufReader:
    """The open files of a model. DaliError, naming the tensor, when one cannot be read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, int] = {}
        self._buffers = local()
        try:
            for path in paths:
                self._files[path] = self._open(path)
        except OSError as error:
            self._stack.close()
            raise damaged(path, error.strerror or str(error)) from error

    def _open(self, path: Path) -> int:
        """The file, past the page cache unless most of it is there: faster, and leaves no second copy of the experts."""
        descriptor = os.open(path, os.O_RDONLY)
        self._stack.callback(os.close, descriptor)
        if hasattr(os, "O_DIRECT") and not _is_cached(descriptor):
            with suppress(OSError):  # a file system without it
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
                self._stack.callback(os.close, descriptor)
        return descriptor

    def __enter__(self) -> GgufReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self, tensor: GgufTensor, begin: int, count: int) -> Bytes:
        """`count` rows of a tensor from row `begin`: uint8 [count, row bytes], valid until this thread's next call."""
        size = count * tensor.row_bytes
        offset = tensor.offset + begin * tensor.row_bytes
        start = offset - offset % PAGE
        view = self._buffer(-(-(offset + size - start) // PAGE) * PAGE)
        done, needed = 0, offset - start + size
        while done < needed:
            try:
                got = os.preadv(self._files[tensor.path], [view[done:]], start + done)
            except OSError as error:
                why = error.strerror or str(error)
                raise damaged(tensor.path, f"{tensor.name} cannot be read ({why})") from error
            if got == 0:
                raise damaged(
                    tensor.path, f"it ends inside {tensor.name}: it has changed since it was opened"
                )
            done += got
        raw = np.frombuffer(view, dtype=np.uint8)[offset - start : needed]
        return raw.reshape(count, tensor.row_bytes)

    def _buffer(self, size: int) -> memoryview:
        """The next of this thread's page-aligned memory: a ring in huge pages.

        Huge pages, as a disk's requests hold few pieces of memory each: scattered small pages halve its speed. A ring, as
        bytes that a core has just read are slow to be written to by anyone else (measured: 1.6 GB/s against 2.6).
        """
        ring: Arena | None = getattr(self._buffers, "ring", None)
        if ring is None or ring.nbytes < size:
            ring = self._buffers.ring = Arena(1, max(RING, round_up(size, HUGE_PAGE)))
            self._buffers.next = 0
        begin: int = self._buffers.next if self._buffers.next + size <= ring.nbytes else 0
        self._buffers.next = begin + round_up(size, HUGE_PAGE)
        return ring[0].numpy().data[begin : begin + size]


def _is_cached(descriptor: int) -> bool:
    """Whether the page cache holds most of a file, by looking for some of its pages."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    size, found, byte = os.fstat(descriptor).st_size, 0, bytearray(1)
    for _ in range(PROBES):  # anywhere: a probe has its own page read in
        with suppress(OSError):  # not there
            found += os.preadv(descriptor, [byte], random.randrange(size), os.RWF_NOWAIT)
    return found > PROBES * 0.9


def read(readings: Sequence[Reading[Any]], progress: Callable[[int], None]) -> None:
    """Do all jobs on a few threads, each with one thread of torch's; `progress` is told the bytes of each.

    The jobs of each reading as they lie in its files, evenly between the others': one may keep the processor busy, another the
    disk. The first failure is raised, and no further job starts.
    """
    in_order = [sorted(reading.jobs, key=lambda job: job.place) for reading in readings]
    turns = [(turn / len(jobs), job) for jobs in in_order for turn, job in enumerate(jobs)]
    ordered = [job for _, job in sorted(turns, key=lambda turn: turn[0])]
    memory = [tensor for reading in readings for tensor in reading.memory]
    with GgufReader(sorted({job.tensor.path for job in ordered})) as reader, _provided(memory):

        def do(job: Job) -> int:
            raw = reader.rows(job.tensor, job.begin, job.count)
            job.take(raw)
            return raw.nbytes

        pool = ThreadPoolExecutor(THREADS, "dali-gguf", initializer=torch.set_num_threads, initargs=(1,))
        threads = torch.get_num_threads()
        try:
            running: list[Future[int]] = [pool.submit(do, job) for job in ordered]
            for future in running:
                progress(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)


@contextmanager
def _provided(memory: Sequence[Tensor]) -> Iterator[None]:
    """The system provides `memory` on a thread of its own, ahead of those that fill it: on theirs, pages would hold up reads."""
    done = Event()

    def provide() -> None:
        for piece in (piece for tensor in memory for piece in torch.split(tensor, PROVIDED)):
            if done.is_set():
                return
            populate(piece)

    thread = Thread(target=provide, name="dali-memory")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
