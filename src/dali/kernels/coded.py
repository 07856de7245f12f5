"""What the words of coded formats stand for. Those of a row in a group of 32 columns are, in uint8 [rows, groups, group_width]:

- codes, a byte each: 8 of IQ3, for 4 columns each, else 4 for 8 columns each;
- signs, a word, not of IQ1. IQ3_S, IQ2_S: bit c belongs to column c. Types that keep 7 of 8 signs leave out those of columns
  7, 15, 23 and 31, for the number of minus signs is even: bit 7 i + k belongs to column 8 i + k, and a scale takes the last four
  bits (IQ3_XXS, IQ2_XXS); or bit 8 i + 1 + k does, and bit 8 i is code i's bit 8 (IQ2_XS).

That is how they lie in the file, but that IQ2_XS has codes and signs in turn there (src/native/kernels/coded.h reads them).
Codes' higher bits and scales are parts of the scale plane as they are in the file, too, except IQ1_M's scales, which are taken
apart from d: 3 bits for each half of a group, 4 of the 6 in a nibble and 2 in a quarter of a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dali.kernels.formats import Format
from dali.kernels.grids import table

STEPS = {"iq3_s": 2.0, "iq3_xxs": 0.5}  # of scales, else 0.25


def decode(words: Tensor, scales: Sequence[Tensor], format: Format) -> tuple[Tensor, Tensor]:
    """Words uint8 [rows, groups, group_width] and the parts of `format.scales` -> whole numbers as float32 [rows, groups, 32],
    and their scale, float32 [rows, groups, 1, or 2 for halves]. IQ1's numbers are eighths."""
    words = words.to(torch.int32)
    d, *parts = (_by_group(part, words.shape[1]) for part in scales)
    codes = words[..., :8] if format.bits == 3 else words[..., :4]
    signs = None if format.bits == 1 else _bits(words[..., -4:])
    high, numbers, down = _PARTS[format.name](*parts, signs)
    grid = torch.from_numpy(table(format.grid).copy())
    values = grid[(codes if high is None else codes | high << 8).long()].to(torch.float32)
    if down is not None:
        values = 8 * values + (1 - 2 * down.to(torch.float32)).unsqueeze(-1)
    values = values.flatten(-2)
    if signs is not None:
        values = values * (
            1 - 2 * (_even(*_SEVEN_SIGNS[format.name], signs) if format.name in _SEVEN_SIGNS else signs)
        )
    step = STEPS.get(format.name, 0.25)
    return values, (numbers.to(torch.float32) * step + step / 2) * d.to(torch.float32)


def _by_group(part: Tensor, groups: int) -> Tensor:
    """[rows, values] -> [rows, groups, values a group]: int32, but floats as they are. One value may serve several groups, whose
    bits then lie in turn in it."""
    if part.is_floating_point() or part.shape[1] >= groups:
        each = part.repeat_interleave(max(groups // part.shape[1], 1), dim=1)
        return torch.unflatten(each if part.is_floating_point() else each.to(torch.int32), 1, (groups, -1))
    shared = groups // part.shape[1]
    bits: Tensor = part.to(torch.int32).unsqueeze(-1) >> torch.arange(0, 8, 8 // shared) & (
        2 ** (8 // shared) - 1
    )
    return bits.flatten(1).unsqueeze(-1)


def _fields(words: Tensor, *shifts: int, bits: int) -> Tensor:
    """[rows, groups, 1] -> [rows, groups, one a shift]."""
    fields: Tensor = words >> torch.tensor(shifts, dtype=torch.int32) & (2**bits - 1)
    return fields


def _bits(word: Tensor) -> Tensor:
    """Four bytes -> each of 32 bits."""
    bits: Tensor = word.unsqueeze(-1) >> torch.arange(8, dtype=torch.int32) & 1
    return bits.flatten(-2)


def _even(first: int, apart: int, bits: Tensor) -> Tensor:
    """Seven signs from bit `first` on, seven more `apart` bits further on: every eighth is such that the number of minus signs is
    even."""
    sevens = torch.unflatten(
        bits[..., [first + apart * i + k for i in range(4) for k in range(7)]], -1, (4, 7)
    )
    return torch.cat([sevens, sevens.sum(-1, keepdim=True) & 1], dim=-1).flatten(-2)


# --- By format: of the parts beside d, and the bits of the word of signs -> the codes' higher bits, the scales' numbers, and what
# is moved down; None where the format has no such thing.

Parts = tuple[Tensor | None, Tensor, Tensor | None]


def _iq3_s(qh: Tensor, scales: Tensor, _: Tensor) -> Parts:
    return _fields(qh, *range(8), bits=1), scales, None


def _scale_in_signs(bits: Tensor) -> Parts:
    return None, (bits[..., 28:] * torch.tensor([1, 2, 4, 8])).sum(-1, keepdim=True), None


def _iq2_s(qh: Tensor, scales: Tensor, _: Tensor) -> Parts:
    return _fields(qh, 0, 2, 4, 6, bits=2), _fields(scales, 0, 4, bits=4), None


def _iq2_xs(scales: Tensor, bits: Tensor) -> Parts:
    return bits[..., ::8], _fields(scales, 0, 4, bits=4), None


def _iq1_s(qh: Tensor, _: None) -> Parts:
    return _fields(qh, 0, 3, 6, 9, bits=3), _fields(qh, 12, bits=3), _fields(qh, 15, bits=1)


def _iq1_m(qh: Tensor, low: Tensor, high: Tensor, _: None) -> Parts:
    numbers = _fields(low | high << 4, 0, 3, bits=3)
    return _fields(qh, 0, 4, 8, 12, bits=3), numbers, _fields(qh, 3, 7, 11, 15, bits=1)


_SEVEN_SIGNS = {"iq3_xxs": (0, 7), "iq2_xxs": (0, 7), "iq2_xs": (1, 8)}
_PARTS: dict[str, Callable[..., Parts]] = {
    "iq3_s": _iq3_s,
    "iq3_xxs": _scale_in_signs,
    "iq2_s": _iq2_s,
    "iq2_xs": _iq2_xs,
    "iq2_xxs": _scale_in_signs,
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
}
