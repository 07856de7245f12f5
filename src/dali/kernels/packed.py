"""What packed formats are made of, and the bytes that matrices and experts take in them: plain numbers, without torch.

Where the bytes lie is in formats.py, which computes on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dali.errors import UsageError

if TYPE_CHECKING:
    import torch

TILE_ROWS = 16
GROUP = 32  # columns whose products are summed in integers
PLANE_ALIGNMENT = 128
RECORD_ALIGNMENT = 4096  # one expert = one aligned read, also past the page cache
ITEM_BYTES = {"float16": 2, "int16": 2, "int8": 1, "uint8": 1}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class ScalePart(NamedTuple):
    """One part of a block's scales: `values` a row of torch's type `kind`."""

    kind: str
    values: int

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.kind)  # type: ignore[no-any-return]

    @property
    def row_bytes(self) -> int:
        return self.values * ITEM_BYTES[self.kind]


@dataclass(frozen=True)
class Format:
    """One packed format. `bits` a weight without its scales, torch's type of `floats`; of quantized ones `zero` point, and the
    `scales` of each `block` of columns. `halves`: 16 columns share a scale, not 32. `minimum`: a value of its own is taken off
    each, beside the zero point. `grid`: the table of a coded format's weights. src/native/layout/format.h has the same table."""

    name: str
    bits: int
    floats: str = ""
    zero: int = 0
    block: int = GROUP
    scales: tuple[ScalePart, ...] = ()
    halves: bool = False
    minimum: bool = False
    grid: str = ""

    @property
    def quantized(self) -> bool:
        return not self.floats

    @property
    def dtype(self) -> torch.dtype | None:
        import torch

        return getattr(torch, self.floats) if self.floats else None

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
        row = sum(part.row_bytes for part in self.scales)
        return round_up(blocks * TILE_ROWS * row, PLANE_ALIGNMENT)

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile: 16 rows of `columns` columns."""
        return self.scale_plane_bytes(columns) + TILE_ROWS * round_up(columns, self.block) * self.bits // 8

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix; always a multiple of 128."""
        return round_up(rows, TILE_ROWS) // TILE_ROWS * self.tile_bytes(columns)


_HALF, _BYTE = ScalePart("float16", 1), ScalePart("uint8", 1)


def _bytes(count: int, kind: str = "uint8") -> ScalePart:
    return ScalePart(kind, count)


_WORDS = _bytes(8, "int16")
_SIX_BITS = (_bytes(8), _bytes(4))  # two numbers of six bits for each of eight groups: `pair_six_bits`
FORMATS = {
    format.name: format
    for format in (
        Format("f32", 32, "float32"),
        Format("f16", 16, "float16"),
        Format("bf16", 16, "bfloat16"),
        Format("w8", 8, zero=128, scales=(_HALF,)),
        Format("w4", 4, zero=8, scales=(_HALF,)),
        Format("mxfp4", 4, zero=12, scales=(_BYTE,)),
        Format("q4k", 4, block=256, scales=(_HALF, _HALF, *_SIX_BITS), minimum=True),
        Format("q4_1", 4, scales=(_HALF, _HALF), minimum=True),
        Format("q5_0", 5, zero=16, scales=(_HALF,)),
        Format("q5_1", 5, scales=(_HALF, _HALF), minimum=True),
        Format("q5k", 5, block=256, scales=(_HALF, _HALF, *_SIX_BITS), minimum=True),
        Format("q6k", 6, zero=32, block=256, scales=(_HALF, _bytes(16, "int8")), halves=True),
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


def expert_matrices(hidden: int, intermediate: int, gated: bool) -> dict[str, tuple[int, int]]:
    """An expert's matrices, name -> (rows, columns), in the order a kernel walks them."""
    inner = (intermediate, hidden)
    names = {"gate": inner} if gated else {}
    return names | {"up": inner, "down": (hidden, intermediate)}


def expert_parts(
    matrices: Mapping[str, tuple[int, int]], formats: Mapping[str, Format], biased: bool
) -> dict[str, tuple[int, int]]:
    """Part of an expert's record -> (offset, bytes): matrices, each in its format, then their float32 biases."""
    parts: dict[str, tuple[int, int]] = {}
    end = 0
    for name, (rows, columns) in matrices.items():
        parts[name] = (end, formats[name].matrix_bytes(rows, columns))
        end = sum(parts[name])
    for name, (rows, _) in matrices.items() if biased else ():
        parts[f"{name}_bias"] = (end, rows * 4)
        end = round_up(end + rows * 4, PLANE_ALIGNMENT)
    return parts


def record_bytes(parts: Mapping[str, tuple[int, int]]) -> int:
    """Bytes the record takes on disk and in RAM, a multiple of 4096."""
    return round_up(max(offset + size for offset, size in parts.values()), RECORD_ALIGNMENT)
