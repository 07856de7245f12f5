"""Packed formats: round trips, GGUF's values bit for bit, the byte layout, and what cannot be packed."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.errors import DaliError, UsageError
from dali.kernels.formats import (
    FORMATS,
    GROUP,
    TILE_ROWS,
    get_format,
    pack,
    quantize,
    quants_and_scales,
    round_up,
    unpack,
)

GGUF_TYPE = {"w8": gguf.GGMLQuantizationType.Q8_0, "w4": gguf.GGMLQuantizationType.Q4_0}


def over(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("format", [FORMATS[name] for name in names], ids=names)


every_format, float_formats, quantized_formats = over(*FORMATS), over("f32", "f16", "bf16"), over("w8", "w4")

COLUMNS = st.integers(1, 100)


@st.composite
def matrices(draw, columns=COLUMNS):
    """float32 [rows, columns] of one magnitude from 1e-30 to 1e5, with zeros, ties and rows of -0.0."""
    shape = draw(st.integers(1, 40)), draw(columns)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "integers", "halves", "quarters"]))
    if kind == "normal":
        matrix = random.standard_normal(shape)
    else:
        step = {"integers": 1, "halves": 2, "quarters": 4}[kind]
        matrix = random.integers(-254, 255, shape) / step
    matrix = matrix * 10.0 ** draw(st.integers(-30, 3))
    matrix[random.random(shape) < 0.1] = 0
    matrix[random.random(shape[0]) < 0.1] = -0.0
    return torch.from_numpy(matrix.astype(np.float32))


@float_formats
@given(matrix=matrices())
@settings(deadline=None, max_examples=40)
def test_float_formats_keep_every_bit(format, matrix):
    matrix = matrix.clamp(-60000, 60000)
    packed = pack(matrix, format)
    assert packed.dtype == torch.uint8
    assert packed.shape == (format.matrix_bytes(*matrix.shape),)
    found, expected = unpack(packed, *matrix.shape, format), matrix.to(format.dtype).float()
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))  # -0.0 is not 0.0


@quantized_formats
@given(matrix=matrices())
@settings(deadline=None, max_examples=60)
def test_quantized_formats_stay_within_their_step(format, matrix):
    """Half a step for w8; a whole one for w4, whose grid is -8..7 of 8; and half a unit of the f16 scale."""
    packed = pack(matrix, format)
    assert packed.shape == (format.matrix_bytes(*matrix.shape),)
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -columns % GROUP)).view(rows, -1, GROUP)
    largest = padded.abs().amax(-1, keepdim=True).double()
    smallest_scale = 2.0**-25  # f16 rounds scales below to 0
    levels, steps = {"w8": (127, 0.5), "w4": (8, 1)}[format.name]
    bound = largest * (steps / levels * (1 + 1e-5) + 2.0**-11) + smallest_scale * levels
    error = (unpack(packed, rows, columns, format) - matrix).abs()
    assert (torch.nn.functional.pad(error, (0, -columns % GROUP)).view_as(padded) <= bound).all()


@quantized_formats
@given(matrix=matrices(columns=st.sampled_from([32, 64, 96])))
@settings(deadline=None, max_examples=150)
def test_quantized_formats_are_ggufs(format, matrix):
    with np.errstate(divide="ignore"):
        blocks = gguf.quants.quantize(matrix.numpy(), GGUF_TYPE[format.name])
    blocks = blocks.reshape(matrix.shape[0], matrix.shape[1] // GROUP, -1)
    scales, theirs = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0], blocks[..., 2:]
    packed = pack(matrix, format)
    ours, our_scales = quants_and_scales(packed, *matrix.shape, format)
    assert np.array_equal(our_scales.numpy().view(np.uint16), scales.view(np.uint16))
    if format.name == "w8":
        assert np.array_equal(ours.numpy().astype(np.int16) - 128, theirs.view(np.int8))
    else:
        assert np.array_equal(ours[..., :16] | (ours[..., 16:] << 4), theirs)
    values = gguf.quants.dequantize(blocks, GGUF_TYPE[format.name]).reshape(matrix.shape)
    assert np.array_equal(unpack(packed, *matrix.shape, format).numpy(), values)


@pytest.mark.parametrize(
    ("values", "quants"),
    [([127, 0.5, 1.5, -0.5, -1.5, -126.5], [255, 129, 130, 127, 126, 1]), ([-127, 2.5], [1, 131])],
)
def test_w8_ties_go_away_from_zero(values, quants):
    """With an extreme of 127 the scale is 1: halves are exact ties."""
    matrix = torch.zeros(1, GROUP)
    matrix[0, : len(values)] = torch.tensor(values)
    assert quantize(matrix, FORMATS["w8"])[0][0, 0, : len(values)].tolist() == quants


def test_w4_takes_the_sign_of_the_extreme():
    """The extreme becomes -8 whatever its sign; its opposite is clamped to 7; ties go up."""
    matrix = torch.zeros(2, GROUP)
    matrix[0, :4] = torch.tensor([8.0, -8.0, 0.5, -0.5])
    matrix[1, :4] = torch.tensor([-8.0, 7.0, 0.5, -0.5])
    quants, scales = quantize(matrix, FORMATS["w4"])
    assert quants[:, 0, :4].tolist() == [[0, 15, 8, 9], [0, 15, 9, 8]]
    assert scales.tolist() == [[-1.0], [1.0]]


# The layout, element by element, from the module's docstring: where (row, column) lies in a packed matrix.


def tile_start(format, row, columns):
    padded = round_up(columns, GROUP)
    plane = round_up(padded // GROUP * TILE_ROWS * 2, 128) if format.quantized else 0
    return row // TILE_ROWS * (plane + TILE_ROWS * padded * format.bits // 8), plane


def byte_of(format, row, column, columns):
    start, plane = tile_start(format, row, columns)
    if format.bits == 4:
        group, within = divmod(column, 32)
        line, byte = divmod(within % 16, 4)
        return start + plane + group * 256 + line * 64 + row % 16 * 4 + byte
    size = format.bits // 8
    line, byte = divmod(column * size, 4)
    return start + plane + line * 64 + row % 16 * 4 + byte


@every_format
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (32, 64), (19, 70), (1, 1), (17, 160)])
def test_every_byte_lies_where_the_docstring_says(format, rows, columns):
    torch.manual_seed(0)
    matrix = torch.randn(rows, columns)
    packed = pack(matrix, format)
    expected = bytearray(len(packed))
    padded = torch.zeros(round_up(rows, 16), round_up(columns, 32))
    padded[:rows, :columns] = matrix
    quants, scales = quantize(padded, format) if format.quantized else (None, None)
    for row in range(padded.shape[0]):
        for column in range(padded.shape[1]):
            at = byte_of(format, row, column, columns)
            if format.bits == 4:
                expected[at] |= int(quants[row, column // 32, column % 32]) << column % 32 // 16 * 4
            elif format.quantized:
                expected[at] = int(quants[row, column // 32, column % 32])
            else:
                value = padded[row, column].to(format.dtype).view(1).view(torch.uint8).tolist()
                expected[at : at + len(value)] = bytes(value)
        for group in range(padded.shape[1] // 32) if format.quantized else ():
            at = tile_start(format, row, columns)[0] + group * 32 + row % 16 * 2
            expected[at : at + 2] = bytes(scales[row, group].view(1).view(torch.uint8).tolist())
    assert bytes(packed.numpy()) == bytes(expected)


def test_a_w8_tile_by_hand():
    """Two tiles of [32, 64]: 2 groups x 32 scale bytes padded to 128, then 16 lines of 64 bytes."""
    matrix = torch.zeros(32, 64)
    matrix[17, 37] = 127  # second tile, row 1, group 1, line 37 // 4 = 9, byte 37 % 4 = 1
    packed = pack(matrix, FORMATS["w8"])
    assert FORMATS["w8"].tile_bytes(64) == 1152
    assert len(packed) == 2304
    one_in_f16 = [0x00, 0x3C]
    assert packed[1152 + 32 + 2 : 1152 + 32 + 4].tolist() == one_in_f16
    assert packed[1152 + 128 + 9 * 64 + 4 + 1] == 255
    assert (packed[1152 + 128 :] == 128).sum() == 1023
    assert (
        packed[: 1152 + 128] != 0
    ).sum() == 1024 + 1  # the first tile's zero points, one byte of the scale


def test_a_w4_tile_by_hand():
    matrix = torch.zeros(16, 32)
    matrix[3, 5] = -8  # low nibble 0 of line 1, row 3, byte 1
    matrix[3, 21] = 7  # high nibble 15 of the same byte
    packed = pack(matrix, FORMATS["w4"])
    assert len(packed) == 128 + 256
    assert packed[128 + 64 + 3 * 4 + 1] == 0xF0
    assert (packed[128:] == 0x88).sum() == 255


@every_format
@given(rows=st.integers(1, 300), columns=st.integers(1, 5000))
@settings(deadline=None, max_examples=50)
def test_planes_start_at_128_bytes(format, rows, columns):
    assert format.scale_plane_bytes(columns) % 128 == 0
    assert format.tile_bytes(columns) % 128 == 0
    assert format.matrix_bytes(rows, columns) == -(-rows // 16) * format.tile_bytes(columns)


@every_format
def test_padding_decodes_to_zero(format):
    packed = pack(torch.randn(19, 70), format)
    whole = unpack(packed, 32, 96, format)
    assert (whole[19:] == 0).all()
    assert (whole[:, 70:] == 0).all()


@every_format
def test_views_and_other_dtypes_pack_as_their_values(format):
    matrix = torch.randn(48, 40, dtype=torch.bfloat16)
    plain = matrix.T.float().contiguous()
    assert torch.equal(pack(matrix.T, format), pack(plain, format))
    assert torch.equal(pack(plain[:, ::2], format), pack(plain[:, ::2].contiguous(), format))


LARGEST = {"f32": 3.4e38, "f16": 65504.0, "bf16": 3.38e38, "w8": 65504.0 * 127, "w4": 65504.0 * 8}


@every_format
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weight_fits(format, sign):
    matrix = torch.full((3, 40), sign * LARGEST[format.name])
    unpacked = unpack(pack(matrix, format), 3, 40, format)
    torch.testing.assert_close(unpacked, matrix, rtol=1e-2, atol=0)


@every_format
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(format, value):
    matrix = torch.randn(3, 70)
    matrix[2, 69] = value
    with pytest.raises(DaliError, match="NaN or infinite"):
        pack(matrix, format)


@every_format
def test_a_weight_too_large_for_the_format_is_refused(format):
    matrix = torch.zeros(3, 70, dtype=torch.float64)
    matrix[1, 3] = -LARGEST[format.name] * 1.01
    with pytest.raises(DaliError, match=f"{format.name} cannot hold a weight of magnitude"):
        pack(matrix, format)


@quantized_formats
def test_groups_of_denormals_decode_to_zero(format):
    """1 / scale overflows there: it must not make NaN quants, which no two CPUs convert alike."""
    matrix = torch.full((2, GROUP), 1e-40)
    matrix[1, ::2] = 0
    quants, scales = quantize(matrix, format)
    assert (quants == format.zero).all()
    assert (scales == 0).all()
    assert (unpack(pack(matrix, format), 2, GROUP, format) == 0).all()


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'w5'.*\n.*f32, f16, bf16, w8, w4"):
        get_format("w5")
