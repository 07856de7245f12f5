"""What the page cache has of a file, and having it forget that."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from dali.store.direct_io import PAGE


def forget(path: Path) -> None:
    """Have the page cache forget a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not on the disk yet cannot be forgotten
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path, path.stat().st_size):
        pytest.skip("the file system is memory itself")


def resident(address: int, size: int) -> list[bool]:
    """Of each page of a mapping, whether it is in memory."""
    there = np.zeros(-(-size // PAGE), dtype=np.uint8)
    pointers = [ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(there.ctypes.data)]
    assert ctypes.CDLL(None).mincore(*pointers) == 0
    return [bool(page & 1) for page in there]


def cached(path: Path, size: int) -> list[int]:
    """Which of the file's first pages the page cache has."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as seen:
        there = resident(np.frombuffer(seen, dtype=np.uint8).ctypes.data, size)
    return [page for page, cached in enumerate(there) if cached]
