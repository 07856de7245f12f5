"""Packed matrix formats: the one byte layout that disk, RAM, CPU and GPU share.

A matrix [rows, columns] is cut into tiles of 16 rows. Inside a tile every 64-byte line holds, for each of the
16 rows, 4 bytes of consecutive columns: 1 column of `f32`, 2 of `bf16`/`f16`, 4 of `w8`. `w4` packs columns j
and j + 16 of a group of 32 into one byte (low and high nibble), so a line holds 8 columns a row. A kernel
therefore reads a tile front to back, one full cache line at a time, and keeps one row a lane.

Quantized tiles start with their scale plane: for each group of 32 columns, 16 f16 scales (32 bytes), padded
to 128 bytes. Quants are unsigned with zero point 128 (`w8`) or 8 (`w4`): value = (quant - zero) * scale,
which are exactly the values of GGUF's Q8_0 and Q4_0. Rows are padded to 16 and columns to 32 with zeros;
padding decodes to 0.

Why this file lies here and not in store/: kernels are the floor below, and the layout is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dali.errors import DaliError, UsageError

TILE_ROWS = 16
GROUP = 32  # columns that share a scale; every format pads columns to this
PLANE_ALIGNMENT = 128
BLOCK = 2**17  # elements quantized at a time


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Format:
    """One packed format. `bits` a weight, `dtype` of float formats, `zero` point of quantized ones."""

    name: str
    bits: int
    dtype: torch.dtype | None = None
    zero: int = 0

    @property
    def quantized(self) -> bool:
        return self.dtype is None

    def scale_plane_bytes(self, columns: int) -> int:
        """Bytes of a tile's scale plane."""
        groups = round_up(columns, GROUP) // GROUP
        return round_up(groups * TILE_ROWS * 2, PLANE_ALIGNMENT) if self.quantized else 0

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile: 16 rows of `columns` columns."""
        return self.scale_plane_bytes(columns) + TILE_ROWS * round_up(columns, GROUP) * self.bits // 8

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix; always a multiple of 128."""
        return round_up(rows, TILE_ROWS) // TILE_ROWS * self.tile_bytes(columns)


FORMATS = {
    format.name: format
    for format in (
        Format("f32", 32, torch.float32),
        Format("f16", 16, torch.float16),
        Format("bf16", 16, torch.bfloat16),
        Format("w8", 8, zero=128),
        Format("w4", 4, zero=8),
    )
}


def get_format(name: str) -> Format:
    """The format called `name`; UsageError lists the known ones."""
    if name not in FORMATS:
        raise UsageError(f"Unknown expert format {name!r}.", f"Known formats: {', '.join(FORMATS)}.")
    return FORMATS[name]


def quantize(matrix: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Quantize float32 [rows, columns] (columns a multiple of 32).

    Returns quants uint8 [rows, groups, 32] and scales float16 [rows, groups]: bit for bit what GGUF's
    reference quantizers give for Q8_0 (largest magnitude -> 127) and Q4_0 (largest magnitude -> -8). Only
    groups so small that 1 / scale overflows differ: theirs divide by zero; here they get the zero point, and
    scale 0 as there.
    """
    rows, columns = matrix.shape
    quants = torch.empty(rows, columns // GROUP, GROUP, dtype=torch.uint8)
    scales = torch.empty(rows, columns // GROUP, dtype=torch.float16)
    step = max(BLOCK // columns, 1)
    for begin in range(0, rows, step):  # in blocks that stay in the cache through all passes over them
        groups = matrix[begin : begin + step].reshape(-1, columns // GROUP, GROUP)
        scale = groups.abs().amax(-1) / 127 if format.name == "w8" else _extreme(groups) / -8
        scaled = groups * _inverse(scale).unsqueeze(-1)
        if format.name == "w8":
            whole = scaled.trunc()
            scaled.sub_(whole).mul_(2).trunc_()  # halves away from zero
            scaled.add_(whole).add_(format.zero)
        else:
            scaled.add_(format.zero + 0.5).clamp_(0, 15)  # the cast truncates
        quants[begin : begin + step] = scaled
        scales[begin : begin + step] = scale
    return quants, scales


def _extreme(groups: Tensor) -> Tensor:
    """The value of largest magnitude in each group, the first of several: [rows, groups]."""
    high, low = groups.amax(-1), groups.amin(-1)
    extreme = torch.where(high >= -low, high, low)
    tied = (high == -low).nonzero(as_tuple=True)
    if len(tied[0]):
        some = groups[tied]
        extreme[tied] = some.gather(-1, some.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return extreme


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where that overflows: a group of zeros, or of denormals."""
    inverse = 1 / scale
    return inverse.masked_fill_(inverse.isinf(), 0)


def dequantize(quants: Tensor, scales: Tensor, format: Format) -> Tensor:
    """Inverse of `quantize`: float32 [rows, columns]."""
    values = quants.to(torch.float32) - format.zero
    return (values * scales.to(torch.float32).unsqueeze(-1)).flatten(1)


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    missing = (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])
    return torch.nn.functional.pad(matrix, missing) if any(missing) else matrix


def pack(matrix: Tensor, format: Format) -> Tensor:
    """Pack a float matrix [rows, columns] into uint8 [format.matrix_bytes(rows, columns)].

    DaliError for weights that are not finite, or whose magnitude (or scale, an f16) the format cannot hold.
    """
    rows, columns = matrix.shape
    matrix = _pad(matrix, round_up(rows, TILE_ROWS), round_up(columns, GROUP))
    if not format.quantized:
        assert format.dtype is not None
        values = matrix.to(format.dtype)
        require_finite(values, matrix, format)
        return _lines(values).flatten()
    quants, scales = quantize(matrix.to(torch.float32), format)
    require_finite(scales, matrix, format)  # one inf or NaN in a group makes its scale so
    return assemble(quants, scales, format)


def require_finite(stored: Tensor, weights: Tensor, format: Format) -> None:
    """DaliError unless all that is `stored` of `weights` is finite."""
    if stored.isfinite().all():
        return
    if not weights.isfinite().all():
        raise DaliError("A weight is NaN or infinite.", "The model is damaged; download it again.")
    largest = weights.abs().max().item()
    raise DaliError(f"{format.name} cannot hold a weight of magnitude {largest:g}.", "Choose bf16 or f32.")


def assemble(quants: Tensor, scales: Tensor, format: Format) -> Tensor:
    """Lay out quants uint8 [rows, groups, 32] and scales float16 [rows, groups] as packed bytes.

    rows must be a multiple of 16.
    """
    rows, groups = scales.shape
    tiles = rows // TILE_ROWS
    if format.bits == 4:
        quants = quants[..., :16] | (quants[..., 16:] << 4)
    lines = _lines(quants.flatten(1))
    by_group = scales.view(tiles, TILE_ROWS, groups).transpose(1, 2).contiguous()
    plane = _pad(by_group.view(torch.uint8).view(tiles, -1), tiles, format.scale_plane_bytes(groups * GROUP))
    return torch.cat([plane, lines], dim=1).flatten()


def _lines(matrix: Tensor) -> Tensor:
    """[rows, columns] -> uint8 [tiles, bytes]: 4 bytes a row in each 64-byte line."""
    words = matrix.contiguous().view(torch.int32)
    tiles = words.view(-1, TILE_ROWS, words.shape[1]).transpose(1, 2).contiguous()
    return tiles.view(torch.uint8).flatten(1)


def _rows(lines: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `_lines`: uint8 [tiles, bytes] -> [rows, columns] of `dtype`."""
    words = lines.view(torch.int32).view(len(lines), -1, TILE_ROWS)
    return words.transpose(1, 2).flatten(0, 1).contiguous().view(dtype)


def quants_and_scales(packed: Tensor, rows: int, columns: int, format: Format) -> tuple[Tensor, Tensor]:
    """Read back quants uint8 [rows, groups, 32] and scales float16 [rows, groups], columns padded to 32."""
    padded = round_up(columns, GROUP)
    tiles = packed.view(-1, format.tile_bytes(columns))
    plane = format.scale_plane_bytes(columns)
    groups = padded // GROUP
    scales = tiles[:, : groups * TILE_ROWS * 2].contiguous().view(torch.float16).view(-1, groups, TILE_ROWS)
    scales = scales.transpose(1, 2).reshape(-1, groups)[:rows]
    quants = _rows(tiles[:, plane:], torch.uint8)[:rows]
    if format.bits == 4:
        quants = quants.view(rows, groups, 16)
        return torch.cat([quants & 15, quants >> 4], dim=-1), scales
    return quants.view(rows, groups, GROUP), scales


def unpack(packed: Tensor, rows: int, columns: int, format: Format) -> Tensor:
    """Packed bytes -> float32 [rows, columns]."""
    if format.quantized:
        return dequantize(*quants_and_scales(packed, rows, columns, format), format)[:, :columns]
    assert format.dtype is not None
    matrix = _rows(packed.view(-1, format.tile_bytes(columns)), format.dtype)
    return matrix[:rows, :columns].to(torch.float32)
