"""Reading a GGUF model's bytes: several reads at a time, from the page cache where it has them, else past it."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import local
from types import TracebackType

import numpy as np
import torch

from dali.store.gguf import GgufTensor, damaged
from dali.store.gguf_blocks import Bytes

THREADS = 6  # some wait for the disk while others repack
PAGE = 4096
PROBES = 64


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
        """This thread's page-aligned memory."""
        held: mmap.mmap | None = getattr(self._buffers, "memory", None)
        if held is None or len(held) < size:
            held = self._buffers.memory = mmap.mmap(-1, size)
        return memoryview(held)[:size]


def _is_cached(descriptor: int) -> bool:
    """Whether the page cache holds most of a file, by looking for some of its pages."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    size, found, byte = os.fstat(descriptor).st_size, 0, bytearray(1)
    for _ in range(PROBES):  # anywhere: a probe has its own page read in
        with suppress(OSError):  # not there
            found += os.preadv(descriptor, [byte], random.randrange(size), os.RWF_NOWAIT)
    return found > PROBES * 0.9


def in_threads(jobs: Sequence[Callable[[], int]], progress: Callable[[int], None]) -> None:
    """Run all jobs on a few threads, each with one thread of torch's; `progress` is told what each returns.

    The first failure is raised, and no further job starts.
    """
    pool = ThreadPoolExecutor(THREADS, "dali-gguf", initializer=torch.set_num_threads, initargs=(1,))
    threads = torch.get_num_threads()
    running: list[Future[int]] = [pool.submit(job) for job in jobs]
    try:
        for future in running:
            progress(future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
