"""What the words of coded formats stand for. Those of a row in a group of 32 columns are, in uint8 [rows, groups, group_width]:

- codes, a byte each: 8 of IQ3, for 4 columns each, else 4 for 8 columns each, in the order 0, 2, 1, 3;
- signs, a word, not of IQ1: bit k of byte b belongs to column 4 b + k, bit 4 + k to column 16 + 4 b + k. Types that keep 7 of 8
  signs leave out those of columns 7, 15, 23 and 31, for the number of minus signs is even. There lie bits 0, 2, 1 and 3 of a
  scale (IQ3_XXS, IQ2_XXS), or bit 8 of each code (IQ2_XS).

So the kernels find what belongs to 16 columns in a few instructions (src/native/kernels/coded.h). Codes' higher bits and scales
are parts of the scale plane as they are in the file, except IQ1_M's scales, which are taken apart from d: 3 bits for each half of
a group, 4 of the 6 in a nibble and 2 in a quarter of a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dali.kernels.formats import Format
from dali.kernels.grids import table

ORDER = (0, 2, 1, 3)  # of codes for 8 columns: its own inverse
STEPS = {"iq3_s": 2.0, "iq3_xxs": 0.5}  # of scales, else 0.25


def decode(words: Tensor, scales: Sequence[Tensor], format: Format) -> tuple[Tensor, Tensor]:
    """Words uint8 [rows, groups, group_width] and the parts of `format.scales` -> whole numbers as float32 [rows, groups, 32],
    and their scale, float32 [rows, groups, 1, or 2 for halves]. IQ1's numbers are eighths."""
    words = words.to(torch.int32)
    d, *parts = (_by_group(part, words.shape[1]) for part in scales)
    codes = words[..., :8] if format.bits == 3 else words[..., ORDER]
    signs = None if format.bits == 1 else _signs(words[..., -4:])
    high, numbers, down = _PARTS[format.name](*parts, None if signs is None else signs[..., 7::8])
    grid = torch.from_numpy(table(format.grid).copy())
    values = grid[(codes if high is None else codes | high << 8).long()].to(torch.float32)
    if down is not None:
        values = 8 * values + (1 - 2 * down.to(torch.float32)).unsqueeze(-1)
    values = values.flatten(-2)
    if signs is not None:
        values = values * (1 - 2 * (_even(signs) if format.name in _SEVEN_SIGNS else signs))
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


def _signs(word: Tensor) -> Tensor:
    """Four bytes -> the bit of each of 32 columns."""
    bits: Tensor = word.unsqueeze(-1) >> torch.arange(8, dtype=torch.int32) & 1
    return bits.view(*word.shape, 2, 4).transpose(-3, -2).flatten(-3)


def _even(signs: Tensor) -> Tensor:
    """Every eighth sign is such that the number of minus signs is even."""
    sevens = torch.unflatten(signs, -1, (4, 8))[..., :7]
    return torch.cat([sevens, sevens.sum(-1, keepdim=True) & 1], dim=-1).flatten(-2)


# --- By format: of the parts beside d, and what lies in places of signs -> the codes' higher bits, the scales' numbers, and what
# is moved down; None where the format has no such thing.

Parts = tuple[Tensor | None, Tensor, Tensor | None]


def _iq3_s(qh: Tensor, scales: Tensor, _: Tensor) -> Parts:
    return _fields(qh, *range(8), bits=1), scales, None


def _scale_in_signs(places: Tensor) -> Parts:
    return None, (places * torch.tensor([1, 4, 2, 8])).sum(-1, keepdim=True), None


def _iq2_s(qh: Tensor, scales: Tensor, _: Tensor) -> Parts:
    return _fields(qh, 0, 2, 4, 6, bits=2), _fields(scales, 0, 4, bits=4), None


def _iq2_xs(scales: Tensor, places: Tensor) -> Parts:
    return places, _fields(scales, 0, 4, bits=4), None


def _iq1_s(qh: Tensor, _: None) -> Parts:
    return _fields(qh, 0, 3, 6, 9, bits=3), _fields(qh, 12, bits=3), _fields(qh, 15, bits=1)


def _iq1_m(qh: Tensor, low: Tensor, high: Tensor, _: None) -> Parts:
    numbers = _fields(low | high << 4, 0, 3, bits=3)
    return _fields(qh, 0, 4, 8, 12, bits=3), numbers, _fields(qh, 3, 7, 11, 15, bits=1)


_SEVEN_SIGNS = ("iq3_xxs", "iq2_xs", "iq2_xxs")
_PARTS: dict[str, Callable[..., Parts]] = {
    "iq3_s": _iq3_s,
    "iq3_xxs": _scale_in_signs,
    "iq2_s": _iq2_s,
    "iq2_xs": _iq2_xs,
    "iq2_xxs": _scale_in_signs,
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
}
