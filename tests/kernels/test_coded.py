"""Coded formats' words by hand; values of whole blocks are held to the gguf package (tests/store/gguf/test_gguf_blocks.py)."""

from __future__ import annotations

import pytest
import torch

from dali.compiled import library
from dali.kernels import native
from dali.kernels.coded import decode
from dali.kernels.formats import FORMATS, assemble, disassemble
from dali.kernels.grids import table, table_bytes

CODED = [format for format in FORMATS.values() if format.coded]


def decoded(name: str, first_group: list[int], *scales: torch.Tensor) -> tuple[list[float], list[float]]:
    """The first group of a block whose other words are zeros: numbers and scales."""
    words = torch.zeros(1, 8, FORMATS[name].group_width, dtype=torch.uint8)
    words[0, 0] = torch.tensor(first_group)
    values, scale = decode(words, scales, FORMATS[name])
    return values[0, 0].tolist(), scale[0, 0].tolist()


ONE = torch.ones(1, 1, dtype=torch.float16)


def test_codes_lie_in_the_order_of_columns():
    values, scale = decoded("iq2_xxs", [7, 200, 30, 255, 0, 0, 0, 0], ONE)
    assert values == table("iq2_xxs")[[7, 200, 30, 255]].flatten().tolist()
    assert scale == [0.125]


def test_signs_lie_in_the_order_of_columns():
    signs = [0b00000001, 0b10000000, 0b00000001, 0b10000000]  # columns 0, 15, 16 and 31
    values, _ = decoded(
        "iq3_s", [0] * 8 + signs, ONE, *(torch.zeros(1, n, dtype=torch.uint8) for n in (8, 4))
    )
    plain = table("iq3_s")[[0] * 8].flatten().tolist()
    assert [column for column in range(32) if values[column] < 0] == [0, 15, 16, 31]
    assert [abs(value) for value in values] == plain


def test_a_scale_lies_behind_four_times_seven_signs():
    """Bit 1 is column 1's, bit 8 column 9's; with each alone columns 7 and 15 are negative, too."""
    values, scale = decoded("iq3_xxs", [0] * 8 + [0b10, 0b1, 0, 0b1011 << 4], ONE)
    assert [column for column in range(32) if values[column] < 0] == [1, 7, 9, 15]
    assert scale == [0.5 * (0.5 + 11)]


def test_a_codes_ninth_bit_lies_before_its_signs():
    scales = torch.full((1, 8), 0x31, dtype=torch.uint8)
    values, scale = decoded("iq2_xs", [3, 5, 0, 0, 0b110, 1, 0, 0], ONE, scales)
    signs = torch.ones(32)
    signs[:2] = -1  # an even number: column 7 is positive
    assert values == (signs * torch.from_numpy(table("iq2_xs")[[3, 256 + 5, 0, 0]].flatten())).tolist()
    assert scale == [0.25 * 1.5, 0.25 * 3.5]


def test_iq1s_weights_are_moved_by_an_eighth():
    qh = torch.zeros(1, 8, dtype=torch.int16)
    qh[0, 0] = -(2**15) | 5 << 12 | 6 << 3  # down, scale 5, code 1's upper bits 6
    values, scale = decoded("iq1_s", [9, 1, 0, 0], ONE, qh)
    assert values == (8 * table("iq1")[[9, 6 * 256 + 1, 0, 0]] - 1).flatten().tolist()
    assert scale == [0.125 * 11]
    qh[0, 0] = (6 | 8) << 4  # code 1 alone
    low, high = torch.zeros(1, 4, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.uint8)
    low[0, 0], high[0, 0] = 0b1101, 0b10  # scales 5 and 1 + 4
    values, scale = decoded("iq1_m", [9, 1, 0, 0], ONE, qh, low, high)
    moves = torch.tensor([1, -1, 1, 1]).repeat_interleave(8)
    assert values == (8 * torch.from_numpy(table("iq1")[[9, 6 * 256 + 1, 0, 0]].flatten()) + moves).tolist()
    assert scale == [0.125 * 11, 0.125 * 11]


@pytest.mark.parametrize("format", CODED, ids=[format.name for format in CODED])
def test_words_and_scales_come_back(format):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 256, (32, 16, format.group_width), generator=generator).to(torch.uint8)
    scales = [
        torch.randint(0, 100, (32, 2 * part.values), generator=generator).to(part.dtype)
        for part in format.scales
    ]
    found, parts = disassemble(assemble(words, scales, format), 32, 512, format)
    assert torch.equal(found, words)
    assert all(map(torch.equal, parts, scales))


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
def test_a_table_of_another_format_is_refused():
    for name, grid in (("w4", "iq3_s"), ("iq3_s", "iq3_xxs"), ("iq2_s", "iq3_s")):
        with pytest.raises(ValueError, match="a table of another format"):
            library.set_grid(name, table_bytes(grid))
