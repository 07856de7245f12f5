"""Packed matrix formats: the one byte layout that disk, RAM, CPU and GPU share.

A matrix [rows, columns] is cut into tiles of 16 rows. Inside a tile every 64-byte line holds, for each of the
16 rows, 4 bytes of consecutive columns: 1 column of `f32`, 2 of `bf16`/`f16`, 4 of `w8`. Quants of fewer bits lie in planes of
4, 2 and 1 bits, a group of 32 columns after the other. Call its columns 4 i to 4 i + 3 vector i, 0 to 7; then a group has

| plane | lines | in each byte of a line |
|---|---|---|
| 4 bits | 4 | line l: vector l in the low nibble, l + 4 in the high one |
| 2 bits | 2 | line l: vector 2 f + l in bits 2 f and 2 f + 1 |
| 1 bit | 1 | vector i in bit i |

the highest bits last: `q6k` is a plane of 4 and one of 2 bits. A kernel therefore reads a tile front to back, one full cache
line at a time, and keeps one row a lane.

Coded formats have no quants. A group holds as many words of 4 bytes as a weight has bits, each in a line of its own: codes that
stand for 4 or 8 columns each, a row of a grid (kernels/grids.py), and signs. kernels/coded.py has their bits.

Quantized tiles start with their scale plane, padded to 128 bytes: block by block the parts of `Format.scales`,
each [values, 16 rows]. Rows are padded to 16 and columns to whole blocks with zeros; padding
decodes to 0 (of formats with a minimum, to less than a step, and meets activations of 0). docs/FORMATS.md lists all formats.

Why this file lies here and not in store/: kernels are the floor below, and the layout is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dali.kernels.packed import (
    FORMATS,
    GROUP,
    PLANE_ALIGNMENT,
    TILE_ROWS,
    Format,
    ScalePart,
    get_format,
    round_up,
)

__all__ = [
    "FORMATS",
    "GROUP",
    "PLANE_ALIGNMENT",
    "TILE_ROWS",
    "Format",
    "ScalePart",
    "get_format",
    "round_up",
]


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`matrix` with zeros up to [rows, columns]."""
    missing = (0, columns - matrix.shape[1], 0, rows - matrix.shape[0])
    return torch.nn.functional.pad(matrix, missing) if any(missing) else matrix


def pair_six_bits(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers below 64 for each of eight groups, uint8 [..., 8] each -> [..., 8] bytes of both low nibbles and [..., 4] of
    what is above them, the first of two groups' in the low nibble."""
    above = (first >> 4) | ((second >> 4) << 2)
    return (first & 15) | ((second & 15) << 4), above[..., ::2] | (above[..., 1::2] << 4)


def six_bits(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `pair_six_bits`."""
    above = torch.stack([high & 15, high >> 4], dim=-1).flatten(-2)
    return (low & 15) | ((above & 3) << 4), (low >> 4) | ((above >> 2) << 4)


def pack_planes(quants: Tensor, format: Format) -> Tensor:
    """quants uint8 [..., 32] of a group -> its bytes in a row [..., 4 * bits]."""
    vectors, planes = torch.unflatten(quants, -1, (8, 4)), []
    beneath = 0
    for bits in format.planes:
        fields = _by_line(vectors, bits) >> beneath & (2**bits - 1)
        packed = fields[..., 0, :, :]
        for field in range(1, 8 // bits):
            packed = packed | fields[..., field, :, :] << (bits * field)
        planes.append(packed.flatten(-2))
        beneath += bits
    return torch.cat(planes, dim=-1)


def unpack_planes(packed: Tensor, format: Format) -> Tensor:
    """Inverse of `pack_planes`: [..., 4 * bits] -> uint8 [..., 32]."""
    quants, beneath = torch.zeros((*packed.shape[:-1], 8, 4), dtype=torch.uint8), 0
    for bits, plane in zip(
        format.planes, torch.split(packed, [4 * bits for bits in format.planes], dim=-1), strict=True
    ):
        lines = torch.unflatten(plane, -1, (bits, 4))
        fields = _by_line(quants, bits)
        for field in range(8 // bits):
            fields[..., field, :, :] |= (lines >> (bits * field) & (2**bits - 1)) << beneath
        beneath += bits
    return quants.flatten(-2)


def _by_line(vectors: Tensor, bits: int) -> Tensor:
    """[..., 8, 4] -> [..., fields of a byte, lines, 4], a view: a plane has as many lines as bits."""
    return torch.unflatten(vectors, -2, (8 // bits, bits))


def assemble(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Tensor:
    """Lay out quants uint8 [rows, groups, 32] and the parts of `format.scales`, each [rows, blocks * values], as packed bytes.
    Of coded formats the quants are the bytes of their words, [rows, groups, format.group_width].

    rows must be a multiple of 16, columns of the format's block.
    """
    rows, groups = quants.shape[:2]
    tiles, blocks = rows // TILE_ROWS, groups * GROUP // format.block
    body = lines((quants if format.coded else pack_planes(quants, format)).flatten(1))
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
    widths = [part.row_bytes * TILE_ROWS for part in format.scales]
    by_block = tiles[:, : blocks * sum(widths)].reshape(len(tiles), blocks, sum(widths))
    scales = tuple(
        part.contiguous()
        .view(of.dtype)
        .view(-1, blocks, of.values, TILE_ROWS)
        .permute(0, 3, 1, 2)
        .reshape(-1, blocks * of.values)[:rows]
        for part, of in zip(torch.split(by_block, widths, dim=2), format.scales, strict=True)
    )
    quants = rows_of(tiles[:, format.scale_plane_bytes(columns) :], torch.uint8)[:rows]
    quants = quants.view(rows, padded // GROUP, 4 * format.bits)
    return quants if format.coded else unpack_planes(quants, format), scales


def lines(matrix: Tensor) -> Tensor:
    """[rows, columns] -> uint8 [tiles, bytes]: 4 bytes a row in each 64-byte line."""
    words = matrix.contiguous().view(torch.int32)
    tiles = words.view(-1, TILE_ROWS, words.shape[1]).transpose(1, 2).contiguous()
    return tiles.view(torch.uint8).flatten(1)


def rows_of(lines: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `lines`: uint8 [tiles, bytes] -> [rows, columns] of `dtype`."""
    words = lines.view(torch.int32).view(len(lines), -1, TILE_ROWS)
    return words.transpose(1, 2).flatten(0, 1).contiguous().view(dtype)
