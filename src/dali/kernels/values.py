"""What quants and scales of each packed format stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dali.kernels.coded import decode
from dali.kernels.formats import Format, six_bits
from dali.kernels.grids import CODES, IQ4_CODES

Integers = tuple[Tensor, Tensor, Tensor | None]


def integers(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Integers:
    """What quants uint8 [rows, groups, 32] stand for: whole numbers, as float32 of that shape, their scale [rows, groups, 1, or
    2 for halves], and what to subtract from number * scale, of the scale's shape (None: nothing)."""
    if format.coded:
        return *decode(quants, scales, format), None
    if format.name in _TABLES:
        values = torch.tensor(_TABLES[format.name], dtype=torch.float32)[quants.to(torch.int32)]
    else:
        values = quants.to(torch.float32) - format.zero
    scale, minimum = _SCALES.get(format.name, _plain)(*scales)
    groups = quants.shape[1]
    return values, _by_group(scale, groups), None if minimum is None else _by_group(minimum, groups)


def _by_group(scale: Tensor, groups: int) -> Tensor:
    """[rows, values] -> [rows, groups, 1 or 2]; one value may serve several groups."""
    each = scale.repeat_interleave(max(groups // scale.shape[1], 1), dim=1)
    return torch.unflatten(each, 1, (groups, -1))


def dequantize(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Tensor:
    """float32 [rows, columns] of quants uint8 [rows, groups, 32] and the parts of `format.scales`."""
    values, scale, minimum = integers(quants, scales, format)
    parts = torch.unflatten(values, -1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)
    return (parts if minimum is None else parts - minimum.unsqueeze(-1)).flatten(1)


def power(exponent: Tensor) -> Tensor:
    """2^(exponent - 128) of uint8 exponents, float32: half of OCP's E8M0 scale, as codes are doubled."""
    return torch.ldexp(torch.ones(exponent.shape), exponent.to(torch.int32) - 128)


def times(whole: Tensor, unit: Tensor) -> Tensor:
    """[rows, n] whole numbers times the f16 unit [rows, blocks] of their block -> float32 [rows, n]."""
    return whole.to(torch.float32) * unit.to(torch.float32).repeat_interleave(
        whole.shape[1] // unit.shape[1], dim=1
    )


Scales = tuple[Tensor, Tensor | None]


def _plain(d: Tensor) -> Scales:
    return d.to(torch.float32), None


def _exponents(e: Tensor) -> Scales:
    return power(e), None


def _added(d: Tensor, m: Tensor) -> Scales:
    return d.to(torch.float32), -m.to(torch.float32)


def _super(d: Tensor, dmin: Tensor, low: Tensor, high: Tensor) -> Scales:
    scale, minimum = (part.flatten(1) for part in six_bits(_blocks(low, d), _blocks(high, d)))
    return times(scale, d), times(minimum, dmin)


def _signed(d: Tensor, scales: Tensor) -> Scales:
    return times(scales, d), None


def _blocks(part: Tensor, of: Tensor) -> Tensor:
    """[rows, blocks * values] -> [rows, blocks, values], as many blocks as `of` [rows, blocks] has."""
    return torch.unflatten(part, 1, (of.shape[1], -1))


def _signed_six_bits(d: Tensor, low: Tensor, high: Tensor) -> Scales:
    pairs = torch.stack(six_bits(_blocks(low, d), _blocks(high, d)), dim=-1).flatten(1)
    return times(pairs.to(torch.int8) - 32, d), None


def _nibbles(d: Tensor, dmin: Tensor, both: Tensor) -> Scales:
    return times(both & 15, d), times(both >> 4, dmin)


def _split_six_bits(d: Tensor, high: Tensor, low: Tensor) -> Scales:
    """Two bits of each of eight scales in two bytes, four of each in four."""
    above, beneath = _blocks(high, d).unsqueeze(-1), _blocks(low, d).unsqueeze(-1)
    above = (above >> torch.arange(0, 8, 2, dtype=torch.uint8) & 3).flatten(-2)
    beneath = torch.cat([beneath & 15, beneath >> 4], dim=-1).flatten(-2)
    return times(((beneath | above << 4).to(torch.int8) - 32).flatten(1), d), None


def _e4m3(scales: Tensor) -> Scales:
    """Half of each, as codes are doubled."""
    return (scales & 127).view(torch.float8_e4m3fn).to(torch.float32) / 2, None


_TABLES = {"mxfp4": CODES, "nvfp4": CODES, "iq4_nl": IQ4_CODES, "iq4_xs": IQ4_CODES}
_SCALES: dict[str, Callable[..., Scales]] = {
    "mxfp4": _exponents,
    "q4_1": _added,
    "q5_1": _added,
    "q4k": _super,
    "q5k": _super,
    "q6k": _signed,
    "q3k": _signed_six_bits,
    "q2k": _nibbles,
    "iq4_xs": _split_six_bits,
    "nvfp4": _e4m3,
}
