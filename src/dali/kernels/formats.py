"""Packed matrix formats: the one byte layout that disk, RAM, CPU and GPU share.

A matrix [rows, columns] is cut into tiles of 16 rows. Inside a tile every 64-byte line holds, for each of the
16 rows, 4 bytes of consecutive columns: 1 column of `f32`, 2 of `bf16`/`f16`, 4 of `w8`. Formats of 4 bits pack
columns j and j + 16 of a group of 32 into one byte (low and high nibble), so a line holds 8 columns a row. A
kernel therefore reads a tile front to back, one full cache line at a time, and keeps one row a lane.

Quantized tiles start with their scale plane, padded to 128 bytes: block by block the parts of `Format.scales`,
each [values, 16 rows]. Rows are padded to 16 and columns to whole blocks with zeros; padding
decodes to 0 (columns of `q4k`: to less than a step, and meet activations of 0).

| format | values of a group of 32 columns | exactly those of |
|---|---|---|
| `w8` | (quant - 128) * f16 scale | GGUF Q8_0 |
| `w4` | (quant - 8) * f16 scale | GGUF Q4_0 |
| `mxfp4` | CODES[quant] * 2^(u8 exponent - 128) | OCP MXFP4, GGUF MXFP4 |
| `q4k` | quant * (d * u8 scale) - (dmin * u8 minimum), d and dmin f16 for 256 columns | GGUF Q4_K |

Why this file lies here and not in store/: kernels are the floor below, and the layout is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dali.errors import UsageError

TILE_ROWS = 16
GROUP = 32  # columns whose products are summed in integers
PLANE_ALIGNMENT = 128
CODES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # MXFP4's values, doubled


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`matrix` with zeros up to [rows, columns]."""
    missing = (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])
    return torch.nn.functional.pad(matrix, missing) if any(missing) else matrix


class ScalePart(NamedTuple):
    """One part of a block's scales: `values` of `dtype` a row."""

    dtype: torch.dtype
    values: int


@dataclass(frozen=True)
class Format:
    """One packed format. `bits` a weight, `dtype` of float formats; of quantized ones `zero` point, and the
    `scales` of each `block` of columns."""

    name: str
    bits: int
    dtype: torch.dtype | None = None
    zero: int = 0
    block: int = GROUP
    scales: tuple[ScalePart, ...] = ()

    @property
    def quantized(self) -> bool:
        return self.dtype is None

    def scale_plane_bytes(self, columns: int) -> int:
        """Bytes of a tile's scale plane."""
        blocks = round_up(columns, self.block) // self.block
        row = sum(part.values * part.dtype.itemsize for part in self.scales)
        return round_up(blocks * TILE_ROWS * row, PLANE_ALIGNMENT)

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile: 16 rows of `columns` columns."""
        return self.scale_plane_bytes(columns) + TILE_ROWS * round_up(columns, self.block) * self.bits // 8

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix; always a multiple of 128."""
        return round_up(rows, TILE_ROWS) // TILE_ROWS * self.tile_bytes(columns)


_HALF, _BYTE = ScalePart(torch.float16, 1), ScalePart(torch.uint8, 1)
_BYTES = ScalePart(torch.uint8, 8)
FORMATS = {
    format.name: format
    for format in (
        Format("f32", 32, torch.float32),
        Format("f16", 16, torch.float16),
        Format("bf16", 16, torch.bfloat16),
        Format("w8", 8, zero=128, scales=(_HALF,)),
        Format("w4", 4, zero=8, scales=(_HALF,)),
        Format("mxfp4", 4, scales=(_BYTE,)),
        Format("q4k", 4, block=256, scales=(_HALF, _HALF, _BYTES, _BYTES)),
    )
}


def get_format(name: str) -> Format:
    """The format called `name`; UsageError lists the known ones."""
    if name not in FORMATS:
        raise UsageError(f"Unknown expert format {name!r}.", f"Known formats: {', '.join(FORMATS)}.")
    return FORMATS[name]


def assemble(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Tensor:
    """Lay out quants uint8 [rows, groups, 32] and the parts of `format.scales`, each [rows, blocks * values], as packed bytes.

    rows must be a multiple of 16, columns of the format's block.
    """
    rows, groups = quants.shape[:2]
    tiles, blocks = rows // TILE_ROWS, groups * GROUP // format.block
    if format.bits == 4:
        quants = quants[..., :16] | (quants[..., 16:] << 4)
    body = lines(quants.flatten(1))
    parts = [
        scale.view(tiles, TILE_ROWS, blocks, count)
        .permute(0, 2, 3, 1)
        .contiguous()
        .view(torch.uint8)
        .view(tiles, blocks, -1)
        for scale, (_, count) in zip(scales, format.scales, strict=True)
    ]
    plane = pad(torch.cat(parts, dim=2).flatten(1), tiles, format.scale_plane_bytes(groups * GROUP))
    return torch.cat([plane, body], dim=1).flatten()


def disassemble(packed: Tensor, rows: int, columns: int, format: Format) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Inverse of `assemble`: quants uint8 [rows, groups, 32] and the scale parts, columns padded to whole blocks."""
    padded = round_up(columns, format.block)
    tiles = packed.view(-1, format.tile_bytes(columns))
    blocks = padded // format.block
    widths = [count * dtype.itemsize * TILE_ROWS for dtype, count in format.scales]
    by_block = tiles[:, : blocks * sum(widths)].reshape(len(tiles), blocks, sum(widths))
    scales = tuple(
        part.contiguous()
        .view(dtype)
        .view(-1, blocks, count, TILE_ROWS)
        .permute(0, 3, 1, 2)
        .reshape(-1, blocks * count)[:rows]
        for part, (dtype, count) in zip(torch.split(by_block, widths, dim=2), format.scales, strict=True)
    )
    quants = rows_of(tiles[:, format.scale_plane_bytes(columns) :], torch.uint8)[:rows]
    if format.bits == 4:
        quants = quants.view(rows, padded // GROUP, 16)
        return torch.cat([quants & 15, quants >> 4], dim=-1), scales
    return quants.view(rows, padded // GROUP, GROUP), scales


def lines(matrix: Tensor) -> Tensor:
    """[rows, columns] -> uint8 [tiles, bytes]: 4 bytes a row in each 64-byte line."""
    words = matrix.contiguous().view(torch.int32)
    tiles = words.view(-1, TILE_ROWS, words.shape[1]).transpose(1, 2).contiguous()
    return tiles.view(torch.uint8).flatten(1)


def rows_of(lines: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `lines`: uint8 [tiles, bytes] -> [rows, columns] of `dtype`."""
    words = lines.view(torch.int32).view(len(lines), -1, TILE_ROWS)
    return words.transpose(1, 2).flatten(0, 1).contiguous().view(dtype)
