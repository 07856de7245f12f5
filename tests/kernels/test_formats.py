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
    disassemble,
    get_format,
    pack_planes,
    pair_six_bits,
    round_up,
    six_bits,
    unpack_planes,
)
from dali.kernels.packing import QUANTIZERS, pack, quantize, unpack
from dali.kernels.values import dequantize, integers

GGUF_TYPE = {
    "w8": gguf.GGMLQuantizationType.Q8_0,
    "w4": gguf.GGMLQuantizationType.Q4_0,
    "mxfp4": gguf.GGMLQuantizationType.MXFP4,
}


def over(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("format", [FORMATS[name] for name in names], ids=names)


float_formats, symmetric_formats, quantized_formats = (
    over("f32", "f16", "bf16"),
    over("w8", "w4"),
    over(*QUANTIZERS),
)
every_format = over("f32", "f16", "bf16", *QUANTIZERS)  # that weights can be packed in

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


@symmetric_formats
@given(matrix=matrices())
@settings(deadline=None, max_examples=60)
def test_symmetric_formats_stay_within_their_step(format, matrix):
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


@given(matrix=matrices())
@settings(deadline=None, max_examples=60)
def test_q4k_stays_within_its_step(matrix):
    """Half a step of a group, and what rounding scale and minimum to 6 bits of an f16 moves its 15 steps by."""
    packed = pack(matrix, FORMATS["q4k"])
    rows, columns = matrix.shape
    blocks = torch.nn.functional.pad(matrix, (0, -columns % 256)).view(rows, -1, 8, 32).double()
    low = blocks.amin(-1).clamp(max=0)
    steps = (blocks.amax(-1) - low) / 15
    d, dmin = steps.amax(-1, keepdim=True) / 63, (-low).amax(-1, keepdim=True) / 63
    largest = blocks.abs().amax((-1, -2))[..., None]
    bound = steps / 2 + 16 * d / 2 + dmin / 2 + largest * 2.0**-9 + 63 * 16 * 2.0**-25
    error = (unpack(packed, rows, columns, FORMATS["q4k"]) - matrix).abs()
    error = torch.nn.functional.pad(error, (0, -columns % 256)).view(blocks.shape).amax(-1)
    assert (error <= bound).all()


@over("w8", "w4", "mxfp4")
@given(matrix=matrices(columns=st.sampled_from([32, 64, 96])))
@settings(deadline=None, max_examples=150)
def test_quantized_formats_are_ggufs(format, matrix):
    with np.errstate(divide="ignore"):
        blocks = gguf.quants.quantize(matrix.numpy(), GGUF_TYPE[format.name])
    blocks = blocks.reshape(matrix.shape[0], matrix.shape[1] // GROUP, -1)
    width = format.scales[0].dtype.itemsize
    scales, theirs = np.ascontiguousarray(blocks[..., :width]), blocks[..., width:]
    packed = pack(matrix, format)
    ours, (our_scales,) = disassemble(packed, *matrix.shape, format)
    assert our_scales.numpy().tobytes() == scales.tobytes()
    if format.name == "w8":
        assert np.array_equal(ours.numpy().astype(np.int16) - 128, theirs.view(np.int8))
    else:
        assert np.array_equal(ours[..., :16] | (ours[..., 16:] << 4), theirs)
    values = gguf.quants.dequantize(blocks, GGUF_TYPE[format.name]).reshape(matrix.shape)
    assert np.array_equal(unpack(packed, *matrix.shape, format).numpy(), values)


def test_mxfp4_rounds_to_the_nearest_value():
    """With 6 the largest, the scale is 1: halves between two values go to the smaller one."""
    matrix = torch.zeros(1, GROUP)
    matrix[0, :8] = torch.tensor([6.0, -6.0, 0.25, 0.26, -0.75, 2.5, 5.1, -5.0])
    quants, (exponent,) = quantize(matrix, FORMATS["mxfp4"])
    assert exponent.tolist() == [[127]]
    assert quants[0, 0, :8].tolist() == [7, 15, 0, 1, 9, 4, 7, 14]
    assert dequantize(quants, (exponent,), FORMATS["mxfp4"])[0, :8].tolist() == [
        6,
        -6,
        0,
        0.5,
        -0.5,
        2,
        6,
        -4,
    ]


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
    quants, (scales,) = quantize(matrix, FORMATS["w4"])
    assert quants[:, 0, :4].tolist() == [[0, 15, 8, 9], [0, 15, 9, 8]]
    assert scales.tolist() == [[-1.0], [1.0]]


# The layout, element by element, from the module's docstring: where (row, column) lies in a packed matrix.


SCALES = {
    "w8": [("<f2", 1)],
    "w4": [("<f2", 1)],
    "mxfp4": [("u1", 1)],
    "q4k": [("<f2", 1), ("<f2", 1), ("u1", 8), ("u1", 4)],
    "q6k": [("<f2", 1), ("i1", 16)],
}
BLOCK_BYTES = {"w8": 32, "w4": 32, "mxfp4": 16, "q4k": 256, "q6k": 288}  # of 16 rows


def tile_start(format, row, padded):
    plane = round_up(padded // format.block * BLOCK_BYTES.get(format.name, 0), 128)
    return row // TILE_ROWS * (plane + TILE_ROWS * padded * format.bits // 8), plane


def byte_of(format, row, column, padded):
    start, plane = tile_start(format, row, padded)
    size = format.bits // 8
    line, byte = divmod(column * size, 4)
    return start + plane + line * 64 + row % 16 * 4 + byte


def pieces_of(format, row, column, padded):
    """Of a quant: (byte, shift in it, bits, how many bits of the quant lie beneath)."""
    start, plane = tile_start(format, row, padded)
    group, within = divmod(column, 32)
    vector, byte = divmod(within, 4)
    line, beneath = group * format.bits, 0
    for bits in format.planes:
        field, below = {8: (0, vector), 4: divmod(vector, 4), 2: divmod(vector, 2), 1: (vector, 0)}[bits]
        at = start + plane + (line + below) * 64 + row % 16 * 4 + byte
        yield at, field * bits, bits, beneath
        line, beneath = line + bits, beneath + bits


@every_format
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (32, 64), (19, 70), (1, 1), (17, 300)])
def test_every_byte_lies_where_the_docstring_says(format, rows, columns):
    torch.manual_seed(0)
    matrix = torch.randn(rows, columns)
    packed = pack(matrix, format)
    expected = bytearray(len(packed))
    padded = torch.zeros(round_up(rows, 16), round_up(columns, format.block))
    padded[:rows, :columns] = matrix
    quants, scales = quantize(padded, format) if format.quantized else (None, ())
    for row in range(padded.shape[0]):
        for column in range(padded.shape[1]):
            if format.quantized:
                quant = int(quants[row, column // 32, column % 32])
                for at, shift, bits, beneath in pieces_of(format, row, column, padded.shape[1]):
                    expected[at] |= (quant >> beneath & (1 << bits) - 1) << shift
            else:
                at = byte_of(format, row, column, padded.shape[1])
                value = padded[row, column].to(format.dtype).view(1).view(torch.uint8).tolist()
                expected[at : at + len(value)] = bytes(value)
        for block in range(padded.shape[1] // format.block) if format.quantized else ():
            at = tile_start(format, row, padded.shape[1])[0] + block * BLOCK_BYTES[format.name]
            for part, (dtype, values) in zip(scales, SCALES[format.name], strict=True):
                for i in range(values):
                    value = part[row, block * values + i].numpy().astype(dtype).tobytes()
                    where = at + row % 16 * len(value)
                    expected[where : where + len(value)] = value
                    at += 16 * len(value)
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
    assert (whole[:, 70:].abs() < (0.2 if format.name == "q4k" else 1e-45)).all()


@every_format
def test_views_and_other_dtypes_pack_as_their_values(format):
    matrix = torch.randn(48, 40, dtype=torch.bfloat16)
    plain = matrix.T.float().contiguous()
    assert torch.equal(pack(matrix.T, format), pack(plain, format))
    assert torch.equal(pack(plain[:, ::2], format), pack(plain[:, ::2].contiguous(), format))


LARGEST = {"f32": 3.4e38, "f16": 65504.0, "bf16": 3.38e38}
LARGEST |= {
    "w8": 65504.0 * 127,
    "w4": 65504.0 * 8,
    "mxfp4": 6 * 2.0**125,
    "q4k": 65504.0 * 63,
    "q6k": 65504.0 * 32 * 128,
}


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
    matrix[1, 3] = -LARGEST[format.name] * (
        1.5 if format.name == "mxfp4" else 1.01
    )  # its largest value clamps
    with pytest.raises(DaliError, match=f"{format.name} cannot hold a weight of magnitude"):
        pack(matrix, format)


@quantized_formats
def test_groups_of_denormals_decode_to_zero(format):
    """1 / scale overflows there: it must not make NaN quants, which no two CPUs convert alike."""
    matrix = torch.full((2, 256), 1e-40)
    matrix[1, ::2] = 0
    quants, scales = quantize(matrix, format)
    assert (integers(quants, scales, format)[0] == 0).all()
    assert (unpack(pack(matrix, format), 2, 256, format) == 0).all()


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'w5'.*\n.*f32, f16, bf16, w8, w4, mxfp4, q4k"):
        get_format("w5")


@over(*(name for name, format in FORMATS.items() if format.quantized and not format.coded))
def test_planes_keep_every_quant(format):
    quants = torch.randint(0, 2**format.bits, (16, 16, 32), dtype=torch.uint8)
    packed = pack_planes(quants, format)
    assert packed.shape == (16, 16, 4 * format.bits)
    assert torch.equal(unpack_planes(packed, format), quants)


def test_six_bits_by_hand():
    first, second = torch.arange(8, dtype=torch.uint8) * 9, torch.arange(8, dtype=torch.uint8) + 50
    low, high = pair_six_bits(first, second)
    assert low.tolist()[:2] == [0 | 2 << 4, 9 | 3 << 4]  # 50 is 0b110010
    assert high.tolist()[0] == 0 | 3 << 2 | 0 << 4 | 3 << 6
    assert all(map(torch.equal, six_bits(low, high), (first, second)))
