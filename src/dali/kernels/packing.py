"""Packing float matrices: quantizing where the format does, and what packed bytes stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from dali.errors import DaliError
from dali.kernels.formats import (
    GROUP,
    TILE_ROWS,
    Format,
    assemble,
    disassemble,
    lines,
    pad,
    pair_six_bits,
    round_up,
    rows_of,
)
from dali.kernels.values import dequantize, power, times

BLOCK = 2**17  # elements quantized at a time
TILES = 16  # decoded at a time
MIDPOINTS = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)  # between MXFP4's magnitudes, doubled


def pack(matrix: Tensor, format: Format) -> Tensor:
    """Pack a float matrix [rows, columns] into uint8 [format.matrix_bytes(rows, columns)].

    DaliError for weights that are not finite, or whose magnitude (or scale) the format cannot hold.
    """
    rows, columns = matrix.shape
    matrix = pad(matrix, round_up(rows, TILE_ROWS), round_up(columns, format.block))
    if not format.quantized:
        assert format.dtype is not None
        values = matrix.to(format.dtype)
        require_finite(values, matrix, format)
        return lines(values).flatten()
    values = matrix.to(torch.float32)
    quants, scales = quantize(values, format)
    for part in [scale for scale in scales if scale.is_floating_point()] or [values]:
        require_finite(part, matrix, format)  # one inf or NaN in a group makes its scale so
    return assemble(quants, scales, format)


def unpack(packed: Tensor, rows: int, columns: int, format: Format) -> Tensor:
    """Packed bytes -> float32 [rows, columns]."""
    if format.quantized:
        return dequantize(*disassemble(packed, rows, columns, format), format)[:, :columns]
    assert format.dtype is not None
    return rows_of(packed.view(-1, format.tile_bytes(columns)), format.dtype)[:rows, :columns].to(
        torch.float32
    )


def unpack_rows(packed: Tensor, columns: int, format: Format, wanted: Tensor) -> Tensor:
    """The rows `wanted` [n] of a packed matrix -> float32 [n, columns]."""
    tiles, place = packed.view(-1, format.tile_bytes(columns)), wanted % TILE_ROWS
    out = torch.empty(len(wanted), columns)
    for rows in torch.split(torch.arange(len(wanted)), TILES):
        some = tiles[wanted[rows] // TILE_ROWS]
        values = unpack(some.flatten(), len(some) * TILE_ROWS, columns, format).view(-1, TILE_ROWS, columns)
        out[rows] = values[torch.arange(len(some)), place[rows]]
    return out


def require_finite(stored: Tensor, weights: Tensor, format: Format) -> None:
    """DaliError unless all that is `stored` of `weights` is finite."""
    if stored.isfinite().all():
        return
    if not weights.isfinite().all():
        raise DaliError("A weight is NaN or infinite.", "The model is damaged; download it again.")
    largest = weights.abs().max().item()
    raise DaliError(f"{format.name} cannot hold a weight of magnitude {largest:g}.", "Choose bf16 or f32.")


def quantize(matrix: Tensor, format: Format) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Quantize float32 [rows, columns] (columns a multiple of the format's block).

    Returns quants uint8 [rows, groups, 32] and the parts of `format.scales`, each [rows, blocks * values].
    `w8`, `w4`, `mxfp4`: bit for bit what GGUF's reference quantizers give for Q8_0 (largest magnitude -> 127),
    Q4_0 (largest magnitude -> -8) and MXFP4 (nearest value). Only groups so small that 1 / scale overflows
    differ: theirs divide by zero; here they get the zero point, and scale 0 as there. `q4k`: plainly from
    smallest to largest, `q6k`: by the largest magnitude, both without llama.cpp's search for better scales.
    """
    rows, columns = matrix.shape
    step = max(BLOCK // columns, 1)
    quantizer = QUANTIZERS[format.name]
    # In blocks of rows that stay in the cache through all passes over them.
    blocks = [
        quantizer(matrix[begin : begin + step].reshape(-1, columns // GROUP, GROUP), format)
        for begin in range(0, rows, step)
    ]
    quants, *scales = (torch.cat(part) for part in zip(*blocks, strict=True))
    return quants, tuple(scales)


def _symmetric(groups: Tensor, format: Format) -> tuple[Tensor, ...]:
    scale = groups.abs().amax(-1) / 127 if format.name == "w8" else _extreme(groups) / -8
    scaled = groups * _inverse(scale).unsqueeze(-1)
    if format.name == "w8":
        whole = scaled.trunc()
        scaled.sub_(whole).mul_(2).trunc_()  # halves away from zero
        scaled.add_(whole).add_(format.zero)
    else:
        scaled.add_(format.zero + 0.5).clamp_(0, 15)  # the cast truncates
    return scaled.to(torch.uint8), scale.to(torch.float16)


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


def _codes(groups: Tensor, format: Format) -> tuple[Tensor, ...]:
    """The largest magnitude lies in [4, 8) half-units of 2^exponent, so the largest code, 12 halves, holds most of it."""
    largest = groups.abs().amax(-1)
    exponent = (torch.frexp(largest).exponent - 1 - 2 + 127).clamp_(0, 254)
    exponent = exponent.masked_fill_(largest == 0, 0).to(torch.uint8)
    magnitude = (groups.abs() / power(exponent).unsqueeze(-1)).contiguous()
    code = torch.bucketize(magnitude, torch.tensor(MIDPOINTS), out_int32=True).to(
        torch.uint8
    )  # ties to the smaller
    return torch.where((groups < 0) & (code > 0), code + 8, code), exponent


def _super_blocks(groups: Tensor, format: Format) -> tuple[Tensor, ...]:
    rows, count = groups.shape[:2]
    low = groups.amin(-1).clamp_(max=0)
    steps = (groups.amax(-1) - low) / 15
    d, dmin = ((part.view(rows, -1, 8).amax(-1) / 63).to(torch.float16) for part in (steps, -low))
    scale, minimum = (
        (part.view(rows, -1, 8) * _inverse(unit.to(torch.float32)).unsqueeze(-1))
        .round_()
        .clamp_(0, 63)
        .nan_to_num_()
        .to(torch.uint8)
        for part, unit in ((steps, d), (-low, dmin))
    )
    step, offset = times(scale.view(rows, count), d), times(minimum.view(rows, count), dmin)
    quants = ((groups + offset.unsqueeze(-1)) * _inverse(step).unsqueeze(-1)).round_().clamp_(0, 15)
    pairs = (part.flatten(1) for part in pair_six_bits(scale, minimum))
    return quants.nan_to_num_().to(torch.uint8), d, dmin, *pairs


def _signed_super_blocks(groups: Tensor, format: Format) -> tuple[Tensor, ...]:
    """The value of largest magnitude in each half becomes -32 steps, and the largest step -128 units."""
    rows, count = groups.shape[:2]
    halves = torch.unflatten(groups, -1, (2, GROUP // 2))
    steps = (_extreme(halves) / -32).view(rows, -1, 16)
    d = (_extreme(steps) / -128).to(torch.float16)
    units = steps * _inverse(d.to(torch.float32)).unsqueeze(-1)
    scale = units.round_().clamp_(-128, 127).nan_to_num_().to(torch.int8).flatten(1)
    step = times(scale, d).view(rows, count, 2, 1)
    quants = (halves * _inverse(step)).round_().clamp_(-32, 31).nan_to_num_().add_(format.zero)
    return quants.to(torch.uint8).flatten(-2), d, scale


QUANTIZERS = {
    "w8": _symmetric,
    "w4": _symmetric,
    "mxfp4": _codes,
    "q4k": _super_blocks,
    "q6k": _signed_super_blocks,
}
"""Of those formats that a model's weights can be packed in; the others hold what a file has in them."""
