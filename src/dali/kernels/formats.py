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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dali.errors import UsageError

TILE_ROWS = 16
GROUP = 32  # columns whose products are summed in integers
PLANE_ALIGNMENT = 128


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
    """One packed format. `bits` a weight without its scales, `dtype` of float formats; of quantized ones `zero` point, and the
    `scales` of each `block` of columns. `halves`: 16 columns share a scale, not 32. `minimum`: a value of its own is taken off
    each, beside the zero point. `grid`: the table of a coded format's weights. src/native/layout/format.h has the same table."""

    name: str
    bits: int
    dtype: torch.dtype | None = None
    zero: int = 0
    block: int = GROUP
    scales: tuple[ScalePart, ...] = ()
    halves: bool = False
    minimum: bool = False
    grid: str = ""

    @property
    def quantized(self) -> bool:
        return self.dtype is None

    @property
    def coded(self) -> bool:
        return bool(self.grid)

    @property
    def group_width(self) -> int:
        """Bytes of a row's quants in a group: one a column, or a coded format's words."""
        return 4 * self.bits if self.coded else GROUP

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane of quants; coded formats have none."""
        return () if self.coded else {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}[self.bits]

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


def _bytes(count: int, dtype: torch.dtype = torch.uint8) -> ScalePart:
    return ScalePart(dtype, count)


_WORDS = _bytes(8, torch.int16)
_SIX_BITS = (_bytes(8), _bytes(4))  # two numbers of six bits for each of eight groups: `pair_six_bits`
FORMATS = {
    format.name: format
    for format in (
        Format("f32", 32, torch.float32),
        Format("f16", 16, torch.float16),
        Format("bf16", 16, torch.bfloat16),
        Format("w8", 8, zero=128, scales=(_HALF,)),
        Format("w4", 4, zero=8, scales=(_HALF,)),
        Format("mxfp4", 4, zero=12, scales=(_BYTE,)),
        Format("q4k", 4, block=256, scales=(_HALF, _HALF, *_SIX_BITS), minimum=True),
        Format("q4_1", 4, scales=(_HALF, _HALF), minimum=True),
        Format("q5_0", 5, zero=16, scales=(_HALF,)),
        Format("q5_1", 5, scales=(_HALF, _HALF), minimum=True),
        Format("q5k", 5, block=256, scales=(_HALF, _HALF, *_SIX_BITS), minimum=True),
        Format("q6k", 6, zero=32, block=256, scales=(_HALF, _bytes(16, torch.int8)), halves=True),
        Format("q3k", 3, zero=4, block=256, scales=(_HALF, *_SIX_BITS), halves=True),
        Format("q2k", 2, block=256, scales=(_HALF, _HALF, _bytes(16)), halves=True, minimum=True),
        Format("iq4_nl", 4, zero=128, scales=(_HALF,)),
        Format("iq4_xs", 4, zero=128, block=256, scales=(_HALF, _bytes(2), _bytes(4))),
        Format("nvfp4", 4, zero=12, block=64, scales=(_bytes(4),), halves=True),
        Format("tq2_0", 2, zero=1, block=256, scales=(_HALF,)),
        Format("iq3_s", 3, zero=64, block=256, scales=(_HALF, _bytes(8), _bytes(4)), grid="iq3_s"),
        Format("iq3_xxs", 3, zero=64, block=256, scales=(_HALF,), grid="iq3_xxs"),
        Format(
            "iq2_s", 2, zero=64, block=256, scales=(_HALF, _bytes(8), _bytes(8)), halves=True, grid="iq2_s"
        ),
        Format("iq2_xs", 2, zero=64, block=256, scales=(_HALF, _bytes(8)), halves=True, grid="iq2_xs"),
        Format("iq2_xxs", 2, zero=64, block=256, scales=(_HALF,), grid="iq2_xxs"),
        Format("iq1_s", 1, zero=16, block=256, scales=(_HALF, _WORDS), grid="iq1"),
        Format(
            "iq1_m",
            1,
            zero=16,
            block=256,
            scales=(_HALF, _WORDS, _bytes(4), _bytes(2)),
            halves=True,
            grid="iq1",
        ),
    )
}


def get_format(name: str) -> Format:
    """The format called `name`; UsageError lists the known ones."""
    if name not in FORMATS:
        raise UsageError(f"Unknown expert format {name!r}.", f"Known formats: {', '.join(FORMATS)}.")
    return FORMATS[name]


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
