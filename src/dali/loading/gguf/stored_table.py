"""Tables of embeddings that stay in their file, beside experts on disk: a step reads the rows of its tokens."""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from threading import Lock

import numpy as np
import torch
import xxhash
from torch import Tensor

from dali.errors import unreadable
from dali.fused.dense import PACKED_ROWS
from dali.fused.embedding import decode_rows
from dali.kernels.formats import round_up
from dali.loading.gguf.packed_rows import PackedRows
from dali.store.arena import Arena
from dali.store.direct_io import PAGE, DirectFile, ReadError
from dali.store.gguf.header import GgufTensor, damaged
from dali.store.gguf.pack import own_format, pack_blocks
from dali.store.gguf.reader import Job, Reading
from dali.store.gguf.values.fields import Bytes

KEPT = 2**22  # bytes of rows that were read last: most tokens of a text come again


class StoredTable:
    """A tensor's rows, decoded as if all of it were packed in memory.

    Each row is held to the checksum that it had when the model was loaded, so that whatever happens to the file, none is wrong.
    DaliError: the file cannot be opened.
    """

    def __init__(self, tensor: GgufTensor) -> None:
        self.tensor, self.format = tensor, own_format(tensor.type)
        self._columns = tensor.shape[-1]
        self._checksums = np.zeros(prod(tensor.shape[:-1]), dtype=np.uint64)
        self._memory: memoryview = Arena(1, round_up(tensor.row_bytes + PAGE, PAGE))[0].numpy().data
        self._row = lru_cache(max(KEPT // tensor.row_bytes, 1))(self._read)
        self._lock = Lock()  # of the memory
        try:
            self._file = DirectFile(tensor.path)
        except OSError as error:
            raise unreadable(tensor.path, error) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def check(self) -> Reading[None]:
        """Read all of it once, for the checksums. Its jobs raise DaliError for values that are not finite."""
        rows = len(self._checksums)
        steps = ((begin, min(PACKED_ROWS, rows - begin)) for begin in range(0, rows, PACKED_ROWS))
        return Reading(
            [Job(self.tensor, *step, partial(self._note, step[0])) for step in steps], lambda: None
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` [n], each one that there is -> float32 [n, columns]. DaliError: one cannot be read, or has changed."""
        if not len(ids):
            return torch.empty(0, self._columns)
        wanted, places = torch.unique(ids, return_inverse=True)
        raw = np.frombuffer(bytearray().join(map(self._row, wanted.tolist())), dtype=np.uint8)
        packed = torch.zeros(self.format.matrix_bytes(len(wanted), self._columns), dtype=torch.uint8)
        pack_blocks(raw.reshape(len(wanted), -1), self.tensor.type, self.format, packed)
        return decode_rows(packed, self._columns, self.format, places)

    def _note(self, begin: int, raw: Bytes) -> None:
        packed = torch.zeros(self.format.matrix_bytes(len(raw), self._columns), dtype=torch.uint8)
        PackedRows(self.tensor, self._columns, None, False, packed, self.format).take(0, None, raw)
        for row, data in enumerate(raw, begin):
            self._checksums[row] = xxhash.xxh3_64_intdigest(data.tobytes())

    def _read(self, row: int) -> bytes:
        size, name = self.tensor.row_bytes, f"row {row} of {self.tensor.name}"
        offset = self.tensor.offset + row * size
        start = offset - offset % PAGE
        end = offset - start + size
        with self._lock:
            try:
                self._file.read(self._memory[: round_up(end, PAGE)], start, name, end)
            except ReadError as error:
                raise damaged(self.tensor.path, str(error)) from error
            data = bytes(self._memory[offset - start : end])
        if xxhash.xxh3_64_intdigest(data) != self._checksums[row]:
            raise damaged(self.tensor.path, f"{name} is not what it was when the model was loaded")
        return data
