"""Reading an expert store: aligned reads past the page cache, a checksum a record."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from dali.errors import DaliError
from dali.store.arena import Arena
from dali.store.direct_io import DirectFile, ReadError
from dali.store.packed.header import HeaderError, StoreHeader

MAX_HEADER_BYTES = 2**24  # some 150,000 experts
READERS = 4  # enough to keep an SSD's queue busy


class DamagedStore(DaliError):
    """The file at `path` is no store of this version, is truncated, fails a checksum or cannot be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"Cannot use the expert store {path}: {why}.",
            "If it was built just now, its disk may be failing: set DALI_CACHE_DIR to a folder on another.",
        )
        self.path = path


class StoreReader:
    """An open store. DamagedStore when there is none that can be used.

    The header is checked when it is opened, a record when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.header, self._checksums = self._read_header(file)
            self._file = DirectFile(path)
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error

    def _read_header(self, file: BinaryIO) -> tuple[StoreHeader, NDArray[np.uint64]]:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise self._damaged("it does not start with the header of a store")
        try:
            header = StoreHeader.parse(file.read(length))
        except HeaderError as error:
            raise self._damaged(str(error)) from error
        if size != header.file_bytes:
            raise self._damaged(f"it has {size} bytes instead of {header.file_bytes}")
        file.seek(header.checksums_offset)
        return header, np.frombuffer(file.read(), dtype="<u8")

    def _damaged(self, why: str) -> DamagedStore:
        return DamagedStore(self.path, why)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, index: int, record: Tensor) -> None:
        """Read record `index` = layer * experts + expert into `record`, page-aligned uint8 [record_bytes].

        DamagedStore when it fails its checksum.
        """
        view = record.numpy().data
        try:
            self._file.read(view, self.header.record_offset(index), f"record {index}")
        except ReadError as error:
            raise self._damaged(str(error)) from error
        if xxhash.xxh3_64_intdigest(view) != int(self._checksums[index]):
            layer, expert = divmod(index, self.header.experts)
            raise self._damaged(f"expert {expert} of MoE layer {layer} fails its checksum")

    @property
    def checksums(self) -> list[int]:
        """XXH3 of each record."""
        return [int(checksum) for checksum in self._checksums]

    def read_all(self, progress: Callable[[int], None] = lambda nbytes: None) -> Arena:
        """All records, of one layout, in RAM. `progress` is told the bytes of each record read."""
        assert not self.header.mixed
        arena = Arena(self.header.records, self.header.record_bytes)
        with ThreadPoolExecutor(READERS, thread_name_prefix="dali-read") as pool:
            # Not futures of our own: one that fails would hold its error, the error this frame, and that the arena.
            for _ in pool.map(lambda index: self.read(index, arena[index]), range(self.header.records)):
                progress(self.header.record_bytes)
        return arena
