"""Page-aligned host memory that holds expert records."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dali.errors import DaliError, parameter


class Arena:
    """`count` records of `record_bytes` (a multiple of 4096) in one anonymous mapping.

    Records that were never touched cost no memory. DaliError when the address space has no room for them.
    """

    def __init__(self, count: int, record_bytes: int) -> None:
        self.record_bytes = record_bytes
        self.nbytes = count * record_bytes
        try:
            self._map = mmap.mmap(-1, max(self.nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise DaliError(
                f"Cannot reserve {self.nbytes / 2**30:.1f} GiB of memory for the experts ({error}).",
                f"Choose a smaller format ({parameter('quant')} w4) or a smaller model.",
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):  # fewer TLB misses while a kernel streams gigabytes
            with suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)[: self.nbytes].view(count, record_bytes)

    def __getitem__(self, index: int) -> Tensor:
        """Record `index`: uint8 [record_bytes], a view."""
        return self._bytes[index]

    def alone(self, index: int, count: int = 1) -> Tensor:
        """`count` records from `index` on, uint8 [bytes]: a view, and a storage of its own to devices."""
        begin, nbytes = index * self.record_bytes, count * self.record_bytes
        return torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=begin)

    @property
    def all(self) -> Tensor:
        """All records: uint8 [count, record_bytes], a view."""
        return self._bytes

    def __len__(self) -> int:
        return self._bytes.shape[0]

    def by_layer(self, layers: int) -> list[list[Tensor]]:
        """All records as [layer][expert] views; record `index` is layer * experts + expert."""
        experts = len(self) // layers
        return [[self[layer * experts + expert] for expert in range(experts)] for layer in range(layers)]


POPULATE_WRITE = 23  # madvise's, Linux 5.14 and later


def populate(memory: Tensor) -> None:
    """Have the system provide the pages of `memory`, which begins on one and keeps its contents; a hint, without effect on other
    systems. Other threads run meanwhile."""
    if (libc := _libc()) is not None:
        libc.madvise(ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(memory.nbytes), POPULATE_WRITE)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
