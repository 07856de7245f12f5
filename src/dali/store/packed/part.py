"""The part of a store that is packed so far, which outlives whoever packs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import xxhash
from torch import Tensor

from dali.store.arena import Arena
from dali.store.direct_io import DirectFile, ReadError
from dali.store.packed.header import CHECKSUM_BYTES, StoreHeader
from dali.store.packed.reader import READERS

WRITTEN = 2**25  # bytes after which what was written is held to have reached the disk


class Part:
    """A store being written to the file at `path`: header, records in order. Beside it are the checksums of those that have
    reached the disk, zeros for the others.

    What another process left there is taken over if it has the same header: records up to the first that fails its checksum, so
    that it does not matter how that one ended, nor in which order its bytes came to the disk. All else is written anew. OSError,
    here and in the methods: the file system refuses.
    """

    def __init__(self, path: Path, header: StoreHeader, progress: Callable[[int], None]) -> None:
        """`progress` is told the bytes of each record that is taken over."""
        self.path, self._header = path, header
        self._beside = Path(f"{path}.sums")
        self._sums = self._right(progress)
        self._saved = len(self._sums)  # of them those that are on disk
        self._unsynced = 0
        mode = "r+b" if self._sums else "wb"
        self._sums_file, self._file = self._beside.open(mode), path.open(mode)
        try:
            if not self._sums:
                self._file.write(header.encode())
                self._sums_file.write(
                    bytes(header.records * CHECKSUM_BYTES)
                )  # its space, for when there is none left
                self._sums_file.flush()
                sync_folder(path.parent)  # the names themselves
            self._file.truncate(self.nbytes)
            self._file.seek(self.nbytes)
        except BaseException:
            if self._sums:
                self.close()
            else:
                self.discard()
            raise

    @property
    def records(self) -> int:
        """Those that are written."""
        return len(self._sums)

    @property
    def nbytes(self) -> int:
        """Bytes of the header and those records."""
        whole = self.records == self._header.records
        return self._header.checksums_offset if whole else self._header.record_offset(self.records)

    def append(self, record: Tensor) -> None:
        """The next record, uint8."""
        view = record.numpy().data
        self._file.write(view)
        self._sums.append(xxhash.xxh3_64_intdigest(view))
        self._unsynced += record.nbytes
        if self._unsynced >= WRITTEN:
            self._sync()

    def finish(self, path: Path) -> None:
        """All records are written: make it the store at `path`."""
        assert self.records == self._header.records
        self._file.write(self._encoded(0))
        self._sync()
        self.close()
        self.path.replace(path)
        sync_folder(path.parent)
        self._beside.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave it for whoever goes on."""
        for step in (self._file.flush, self._save, self._file.close, self._sums_file.close):
            with suppress(
                OSError, ValueError
            ):  # no space, or closed already; what is missing is packed again
                step()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._beside.unlink(missing_ok=True)

    def _sync(self) -> None:
        """All that was written to the disk, and out of the page cache: the reader goes past it, and a copy there would take
        memory."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0
        self._save()
        os.fsync(self._sums_file.fileno())

    def _save(self) -> None:
        """The checksums that are not on disk yet."""
        self._sums_file.seek(self._saved * CHECKSUM_BYTES)  # what was interrupted here is written again
        self._sums_file.write(self._encoded(self._saved))
        self._sums_file.flush()
        self._saved = self.records

    def _encoded(self, first: int) -> bytes:
        return np.array(self._sums[first:], dtype="<u8").tobytes()

    def _right(self, progress: Callable[[int], None]) -> list[int]:
        """The checksums of the records that are there, up to the first that is not what it should be."""
        sums = self._claimed()
        if not sums:
            return []
        arena, records = Arena(READERS, self._header.record_bytes), DirectFile(self.path)

        def is_right(index: int) -> bool:
            view = arena[index % READERS].numpy().data[: self._header.size_of(index)]
            try:
                records.read(view, self._header.record_offset(index), f"record {index}")
            except ReadError:
                return False
            return sums[index] == xxhash.xxh3_64_intdigest(view)

        with closing(records), ThreadPoolExecutor(READERS, "dali-verify") as pool:
            for begin in range(0, len(sums), READERS):
                batch = range(begin, min(begin + READERS, len(sums)))
                for index, right in zip(batch, pool.map(is_right, batch), strict=True):
                    if not right:
                        return sums[:index]
                    progress(self._header.size_of(index))
        return sums

    def _claimed(self) -> list[int]:
        """The checksums that are there, of a part with this header."""
        expected = self._header.encode()
        try:
            with self.path.open("rb") as file:
                if file.read(len(expected)) != expected:
                    return []
            beside = self._beside.read_bytes()
        except FileNotFoundError:
            return []
        count = min(len(beside) // CHECKSUM_BYTES, self._header.records)
        return [int(checksum) for checksum in np.frombuffer(beside, "<u8", count)]


def sync_folder(folder: Path) -> None:
    """The names in a folder to the disk, where its file system knows how: without them a file is packed again."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
