"""What quants and scales of each packed format stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dali.kernels.formats import CODES, GROUP, Format, six_bits

Integers = tuple[Tensor, Tensor, Tensor | None]


def integers(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Integers:
    """What quants uint8 [rows, groups, 32] stand for: whole numbers, as float32 of that shape, their scale [rows, groups, 1, or 2 for
    halves], and what to subtract from number * scale, of the scale's shape (None: nothing)."""
    values = quants.to(torch.float32) - format.zero
    if format.name == "mxfp4":
        values = torch.tensor(CODES, dtype=torch.float32)[quants.to(torch.int32)]
    scale, minimum = _SCALES.get(format.name, _plain)(*scales)
    shape = (*quants.shape[:2], -1)
    return values, scale.reshape(shape), None if minimum is None else minimum.reshape(shape)


def dequantize(quants: Tensor, scales: Sequence[Tensor], format: Format) -> Tensor:
    """float32 [rows, columns] of quants uint8 [rows, groups, 32] and the parts of `format.scales`."""
    values, scale, minimum = integers(quants, scales, format)
    parts = values.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)
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
    return part.unflatten(1, (of.shape[1], -1))


_SCALES: dict[str, Callable[..., Scales]] = {
    "mxfp4": _exponents,
    "q4_1": _added,
    "q5_1": _added,
    "q4k": _super,
    "q5k": _super,
    "q6k": _signed,
}
