"""Rows of a GGUF tensor on their way into a packed matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dali.errors import DaliError
from dali.kernels.formats import TILE_ROWS, Format
from dali.loading.gguf.parts import blocks_in_order
from dali.store.gguf.header import GgufTensor
from dali.store.gguf.pack import Losses, pack_blocks
from dali.store.gguf.values.fields import Bytes

MEASURED_ROWS = 4 * TILE_ROWS  # of each linear that is converted


@dataclass(frozen=True)
class PackedRows:
    """Where the rows of a matrix go, brought into `order`: into `out`, in `format`."""

    tensor: GgufTensor
    width: int
    order: NDArray[np.int64] | None
    columns: bool  # whether the order is that of columns
    out: Tensor
    format: Format

    def take(self, begin: int, losses: Losses | None, raw: Bytes) -> None:
        """Rows from row `begin`. DaliError for values that are not finite."""
        type = self.tensor.type
        if self.order is not None and self.columns:
            blocks = blocks_in_order(self.order, type.columns)
            raw = raw.reshape(len(raw), len(self.order) // type.columns, -1)[:, blocks].reshape(raw.shape)
        elif self.order is not None:
            raw = raw[self.order]
        at = begin // TILE_ROWS * self.format.tile_bytes(self.width)
        out = self.out[at : at + self.format.matrix_bytes(len(raw), self.width)]
        try:
            pack_blocks(raw, type, self.format, out)
        except DaliError as error:
            raise DaliError(
                f"The tensor {self.tensor.name} in {self.tensor.path}: {error.problem}", error.fix
            ) from error
        if losses is not None:
            some = raw[:MEASURED_ROWS]
            losses.packed(some, type, out[: self.format.matrix_bytes(len(some), self.width)], self.format)
