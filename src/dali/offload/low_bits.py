"""Experts of 2 to 4 bits for systems that trade quality for speed, in the packed layouts the kernels read.

No packed format holds 2 or 3 bits: a matrix is rounded to that many levels a group of 32, scale x (level - whole zero point), and
those values are stored exactly in `w4` or `w8`. So quality is that of so few bits, while bytes and times stay the format's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dali.errors import DaliError, UsageError, parameter
from dali.hardware.free_memory import available_ram
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import GROUP, TILE_ROWS, Format, assemble, get_format, pad, round_up
from dali.kernels.packing import require_finite
from dali.progress import Meter
from dali.store.arena import Arena
from dali.units import size

HELD = ("w4", "w8")  # formats that hold whole multiples of a scale


def reduce_bits(
    layouts: Sequence[ExpertLayout], records: Sequence[Sequence[Tensor]], bits: int, meter: Meter
) -> None:
    """Round every expert in place to `bits` (2 or 3). UsageError: a format that cannot hold the result."""
    other = [
        format.name for layout in layouts for format in layout.formats.values() if format.name not in HELD
    ]
    if other:
        raise UsageError(
            f"Experts of {bits} bits are stored in {' or '.join(HELD)}, and this model's are in {other[0]}.",
            f"Load it with {parameter('quant')} {HELD[0]}.",
        )
    advance = meter(f"Rounding experts to {bits} bits", sum(map(len, records)))
    for layout, layer in zip(layouts, records, strict=True):
        for record in layer:
            _reduce(layout, record, layout, record, bits)
            advance(1)


def low_precision(
    layouts: Sequence[ExpertLayout], records: Sequence[Sequence[Tensor]], room: int | None, meter: Meter
) -> tuple[list[ExpertLayout], list[list[Tensor]]]:
    """A second, lower precision of every expert: `w4` beside float experts, 2 bits in `w4`'s bytes beside quantized ones.
    `room`: bytes that `ram` leaves for it, None for what is free. DaliError: no memory for it."""
    low = [ExpertLayout(layout.shape, get_format("w4")) for layout in layouts]
    count, nbytes = sum(map(len, records)), low[0].record_bytes
    need, free = count * nbytes, available_ram()
    if need > (free if room is None else room):
        if room is None:
            limit, more = f"{size(free)} are free", "Close other programs"
        else:
            limit, more = (
                f"{parameter('ram')} leaves {size(max(room, 0))} for them",
                f"Raise {parameter('ram')} by {size(need - room)}",
            )
        raise DaliError(
            f"Low-precision experts take {size(need)} more memory, and {limit}.",
            f"{more}, or leave out {parameter('lossy')}.",
        )
    found = Arena(count, nbytes).by_layer(len(layouts))
    advance = meter("Making low-precision experts", count)
    for source, target, layer, lower in zip(layouts, low, records, found, strict=True):
        for record, copy in zip(layer, lower, strict=True):
            if source.format.quantized:
                _reduce(source, record, target, copy, 2)
            else:
                target.pack(source.unpack(record), copy)
            advance(1)
    return low, found


def _reduce(source: ExpertLayout, record: Tensor, target: ExpertLayout, out: Tensor, bits: int) -> None:
    """Write `record`'s expert, rounded to `bits`, into `out`, which may be the same."""
    weights = source.unpack(record)
    for name, format in target.formats.items():
        target.part(out, name).copy_(few_levels(getattr(weights, name), bits, format))
        if source.shape.biased:
            target.part(out, f"{name}_bias").copy_(source.part(record, f"{name}_bias"))


def few_levels(matrix: Tensor, bits: int, format: Format) -> Tensor:
    """Pack float32 [rows, columns], rounded to nearest among 2^bits levels from each group's least value (or 0) to its largest
    (or 0), into `format`, one of HELD."""
    rows, columns = matrix.shape
    padded = pad(matrix, round_up(rows, TILE_ROWS), round_up(columns, GROUP))
    groups = padded.view(len(padded), -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).to(torch.float16)
    require_finite(scale, matrix, format)
    step = scale.to(torch.float32).masked_fill(scale == 0, float("inf"))  # a group of zeros stays one
    zero = (
        (-low / step).round_().clamp_(max=2**bits - 1).unsqueeze(-1)
    )  # a tiny scale may have been rounded down
    levels = (groups / step.unsqueeze(-1) + zero).round_().clamp_(0, 2**bits - 1)
    return assemble((levels - zero + format.zero).to(torch.uint8), (scale,), format)
