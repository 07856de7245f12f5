"""Building an expert store: once a (model, format), atomically, by one process at a time."""

from __future__ import annotations

import errno
import shutil
import sys
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Protocol

import torch
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from dali.errors import DaliError, parameter
from dali.kernels.expert import ExpertLayout, ExpertWeights
from dali.kernels.formats import FORMATS
from dali.store.packed.header import StoreHeader
from dali.store.packed.part import Part
from dali.store.packed.reader import StoreReader
from dali.store.workers import workers

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)

Progress = Callable[[int], None]
Packing = Callable[[Tensor], None]  # fills a record of zeros


class ExpertSource(Protocol):
    """Where expert weights come from."""

    def read(self, layer: int, expert: int) -> ExpertWeights | Packing:
        """Its weights, or what packs them."""


def ensure_store(
    path: Path,
    header: StoreHeader,
    source: ExpertSource,
    progress: Callable[[], Progress],
    notify: Callable[[str], None] = lambda message: None,
) -> bool:
    """Make sure `path` is the store that `header` describes; True if it was built now.

    A store of another source, layout or version is replaced. What an interrupted build left is gone on with. `progress` is
    called when a build starts and returns the function that is told of each record's bytes. Where the file system knows no
    locks, each of several processes builds its own, and the last one's stays. DaliError: no space, unwritable cache, an
    unreadable source, weights that the format cannot hold.
    """
    if _is_current(path, header):  # no lock: a store appears whole, and its folder may be read-only
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, notify)
    except OSError as error:
        raise DaliError(
            f"Cannot write to the cache folder {path.parent} ({error.strerror or error}).",
            "Make it writable, or set DALI_CACHE_DIR to a folder that is.",
        ) from error
    try:
        if _is_current(path, header):
            return False
        build(path, header, source, progress(), notify, alone=lock is not None)
        return True
    finally:
        if lock is not None:
            lock.release()


def _lock(path: Path, notify: Callable[[str], None]) -> BaseFileLock | None:
    """The right to build `path`, waited for; None where the file system has no locks to give."""
    name = f"{path}.lock"
    if not _has_locks(name):
        notify(f"The file system of {path.parent} has no locks: let one process at a time pack the experts.")
        return None
    lock = FileLock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify("Another process is building the expert store; waiting for it.")
        lock.acquire()
    return lock


def _has_locks(name: str) -> bool:
    """Whether the file `name`, which is made if it is not there, can be locked: network file systems may refuse that."""
    if sys.platform == "win32":  # every file system there has them
        return True
    import fcntl

    with open(name, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
    return True


def _is_current(path: Path, header: StoreHeader) -> bool:
    try:
        with StoreReader(path) as reader:
            return reader.header == header
    except DaliError:  # missing, half-written, truncated or of another version
        return False


def build(
    path: Path,
    header: StoreHeader,
    source: ExpertSource,
    progress: Progress,
    notify: Callable[[str], None] = lambda message: None,
    alone: bool = True,
) -> None:
    """Write the store under another name, sync it and rename it. `alone`: nobody else is building it, so a part that is there is
    gone on with, and where this fails or is interrupted, a part stays for the next."""
    name = "part" if alone else f"{token_hex(4)}.tmp"  # other computers may have our number
    part = None
    try:
        for killed in path.parent.glob(f"{path.name}.*.tmp") if alone else ():
            killed.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # outdated: free its space before its successor needs it
        part = Part(path.with_name(f"{path.name}.{name}"), header, progress)
        free = shutil.disk_usage(path.parent).free
        if free < header.file_bytes - part.nbytes:
            raise _no_space(path, header, part, free)
        if part.records:
            notify(
                f"Packing goes on at {100 * part.nbytes // header.file_bytes} %, where it was interrupted."
            )
        with closing(_packed(header, source, part.records)) as packed:
            for record in packed:
                part.append(record)
                progress(record.nbytes)
        part.finish(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path, header, part, shutil.disk_usage(path.parent).free) from error
        raise _unwritable(path, error) from error
    finally:
        if part is not None:
            part.close()
            if not alone or not part.records:
                part.discard()


def _packed(header: StoreHeader, source: ExpertSource, first: int) -> Generator[Tensor, None, None]:
    """Every record from the `first` on, in order. Experts are read one after another and packed side by side."""
    threads = torch.get_num_threads()
    pending: deque[Future[Tensor]] = deque()
    with workers(threads, "dali-pack") as pool:
        for index in range(first, header.records):
            layer, expert = divmod(index, header.experts)
            pending.append(pool.submit(_pack, header, layer, expert, source.read(layer, expert)))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _pack(header: StoreHeader, layer: int, expert: int, weights: ExpertWeights | Packing) -> Tensor:
    layout = header.layouts[layer]
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    try:
        if isinstance(weights, ExpertWeights):
            layout.pack(weights, record)
        else:
            weights(record)
    except DaliError as error:
        raise DaliError(f"Expert {expert} of MoE layer {layer}: {error.problem}", error.fix) from error
    return record


def discard(path: Path) -> None:
    """Delete a damaged store, which the next load then builds anew. DaliError: its folder cannot be written."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DaliError:
    return DaliError(
        f"Cannot write the expert store {path} ({error.strerror or error}).",
        "Make its folder writable, or set DALI_CACHE_DIR to another one.",
    )


def _no_space(path: Path, header: StoreHeader, part: Part | None, free: int) -> DaliError:
    packed = 0 if part is None or not part.records else part.nbytes
    more = " more, to go on with what is packed," if packed else ""
    fix = "Free some space, or set DALI_CACHE_DIR to another disk"
    if ExpertLayout(header.layout.shape, FORMATS["w4"]).record_bytes < header.record_bytes:
        fix += f", or choose a smaller format ({parameter('quant')} w4)"
    return DaliError(
        f"The expert store needs {(header.file_bytes - packed) / 2**20:.0f} MiB{more} in {path.parent}, "
        f"where {free / 2**20:.0f} MiB are free.",
        f"{fix}.",
    )
