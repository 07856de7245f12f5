"""Reading a GGUF model's bytes in one pass: several reads at a time, from the page cache where it has them, else past it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, local
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dali.errors import unreadable
from dali.store.arena import populate
from dali.store.direct_io import DirectFile, ReadError, Ring
from dali.store.gguf.header import GgufTensor, damaged
from dali.store.gguf.values.fields import Bytes
from dali.store.workers import workers

THREADS = 6  # some wait for the disk while others repack
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
        self._files: dict[Path, DirectFile] = {}
        self._rings = local()
        try:
            for path in paths:
                self._files[path] = DirectFile(path, unless_cached=True)
        except OSError as error:
            self._close()
            raise unreadable(path, error) from error

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> GgufReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def rows(self, tensor: GgufTensor, begin: int, count: int) -> Bytes:
        """`count` rows of a tensor from row `begin`: uint8 [count, row bytes], valid until this thread's next call."""
        if not hasattr(self._rings, "ring"):
            self._rings.ring = Ring()
        offset = tensor.offset + begin * tensor.row_bytes
        try:
            raw = self._files[tensor.path].read_range(
                self._rings.ring, offset, count * tensor.row_bytes, tensor.name
            )
        except ReadError as error:
            raise damaged(tensor.path, str(error)) from error
        return np.frombuffer(raw, dtype=np.uint8).reshape(count, tensor.row_bytes)


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

        with workers(THREADS, "dali-gguf") as pool:
            running = [pool.submit(do, job) for job in ordered]
            for future in running:
                progress(future.result())


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
