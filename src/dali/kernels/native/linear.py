"""Packed matrices: a linear module's, and their bytes from a GGUF file's."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.formats import TILE_ROWS, Format
from dali.kernels.native.library import DTYPES


class Linear:
    """x -> x W^T + bias for a packed W [rows, columns]; `packed` as kernels.packing.pack lays it out, bias float32 [rows]."""

    def __init__(
        self, packed: Tensor, rows: int, columns: int, format: Format, bias: Tensor | None = None
    ) -> None:
        self.rows, self.columns = rows, columns
        self._matrix = library.Matrix(format.name, rows, columns)
        assert packed.is_contiguous() and packed.nbytes == self._matrix.bytes
        assert bias is None or (
            bias.dtype == torch.float32 and bias.is_contiguous() and bias.shape == (rows,)
        )
        self._tensors = packed, bias
        self._address, self._bias_address = packed.data_ptr(), 0 if bias is None else bias.data_ptr()
        self._packed = library.PackedLinear(self._matrix, self._address, columns, self._bias_address)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., columns], float32, bfloat16 or float16 -> [..., rows] of the same dtype."""
        x = x.contiguous()
        shape = x.shape
        assert shape[-1] == self.columns
        out = x.new_empty((*shape[:-1], self.rows))
        dtype = DTYPES[x.dtype]
        tokens = x.numel() // self.columns
        library.linear(
            self._matrix,
            self._address,
            self.columns,
            self._bias_address,
            x.data_ptr(),
            dtype,
            tokens,
            out.data_ptr(),
        )
        return out


def rows_of(packed: Tensor, columns: int, format: Format, rows: Tensor) -> Tensor:
    """What rows of a packed matrix of a quantized format stand for: rows int64 [n], each one that the matrix has -> float32
    [n, columns]."""
    assert format.quantized and packed.is_contiguous() and rows.dtype == torch.int64
    matrix = library.Matrix(format.name, packed.nbytes // format.tile_bytes(columns) * TILE_ROWS, columns)
    rows = rows.contiguous()
    out = torch.empty(len(rows), columns)
    library.rows_of(matrix, packed.data_ptr(), columns, rows.data_ptr(), len(rows), out.data_ptr())
    return out


def repack(raw: Tensor, type: str, columns: int, format: Format, packed: Tensor) -> bool:
    """GGUF's blocks into packed tiles: raw uint8 [rows, row bytes] of `type`, in the format of its values; packed uint8
    [format.matrix_bytes(rows, columns)]. False for scales that are NaN or infinite."""
    matrix = library.Matrix(format.name, raw.shape[0], columns)
    assert raw.is_contiguous() and packed.is_contiguous() and packed.nbytes == matrix.bytes
    return bool(library.repack(matrix, type, raw.data_ptr(), raw.shape[1], packed.data_ptr()))


def dequantize_blocks(raw: Tensor, type: str, blocks: int, out: Tensor) -> None:
    """The values of `blocks` of GGUF's blocks of `type`, a quantized one: raw uint8, contiguous, out float32, contiguous."""
    assert raw.is_contiguous() and out.is_contiguous() and out.dtype == torch.float32
    assert raw.nbytes % blocks == 0 and out.numel() % blocks == 0
    library.dequantize_blocks(type, raw.data_ptr(), blocks, out.data_ptr())
