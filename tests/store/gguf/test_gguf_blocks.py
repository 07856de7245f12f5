"""Block types against the gguf package's own, and repacking against the values it keeps."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.formats import FORMATS, Format
from dali.kernels.packing import pack, unpack
from dali.store.gguf.blocks import BLOCK_TYPES, REMOVED, SAME_VALUES, UNSUPPORTED, BlockType
from dali.store.gguf.pack import own_format, pack_blocks, squared_error

TYPES = {type.name: type for type in BLOCK_TYPES.values()}


FLOATS = {"F32", "F16", "BF16"}
# Of each type the fields that hold its scales and minima; IQ1_M's has no field of its own.
HALVES = {
    name: [field for field in type.fields.names or () if type.fields[field] == np.float16]
    for name, type in TYPES.items()
}


def put_scale(name: str, field: str, blocks: np.ndarray, scale: np.ndarray) -> None:
    if name != "IQ1_M":
        blocks[field] = scale
        return
    bits = np.asarray(scale, dtype="<f2").view("<u2")[..., None] >> np.arange(0, 16, 4, dtype=np.uint16)
    blocks["scales"] = blocks["scales"] & 0x0FFF | bits << 12


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Any bytes, but scales that are finite: uint8 [rows, row bytes]."""
    generator = np.random.default_rng(seed)
    type = TYPES[name]
    raw = generator.integers(0, 256, (rows, type.row_bytes(columns)), dtype=np.uint8)
    blocks = type.blocks(raw)
    if name in FLOATS:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        blocks[...] = values.view("<u4") >> 16 if name == "BF16" else values
    for field in HALVES[name] or ["d"] * (name == "IQ1_M"):
        put_scale(name, field, blocks, generator.uniform(-1, 1, blocks.shape))
    if name == "MXFP4":
        blocks["e"] = generator.integers(0, 250, blocks.shape)
    if name == "NVFP4":
        blocks["d"] = generator.integers(0, 127, blocks["d"].shape)
    return raw


def hostile_blocks(name: str) -> np.ndarray:
    """Every byte in every place, and any bytes, with every pair of scales that something may be wrong with: one block a row."""
    size = TYPES[name].fields.itemsize
    same = np.repeat(np.arange(256, dtype=np.uint8)[:, None], size, axis=1)
    raw = np.concatenate([same, np.random.default_rng(1).integers(0, 256, (256, size), dtype=np.uint8)])
    if not (fields := HALVES[name] or ["d"] * (name == "IQ1_M")):
        return raw
    scales = np.array([0, -0.0, 2**-24, -(2**-24), 5e-5, -1 / 3, 1, 65504, -65504], dtype=np.float16)
    choices = [scales] * len(fields)
    raw = np.tile(raw, (len(scales) ** len(fields), 1))
    for field, chosen in zip(fields, np.meshgrid(*choices), strict=True):
        put_scale(name, field, TYPES[name].blocks(raw)[:, 0], np.repeat(chosen.ravel(), 512))
    return raw


def ggml_values(name: str, raw: np.ndarray) -> np.ndarray:
    plain = {"F32": np.float32, "F16": np.float16}.get(name)
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(
            raw if plain is None else raw.view(plain), gguf.GGMLQuantizationType[name]
        )


def same_bits(values: np.ndarray, expected: np.ndarray) -> bool:
    return values.dtype == expected.dtype and np.array_equal(values.view("<u4"), expected.view("<u4"))


def packed_blocks(raw: np.ndarray, type: BlockType, format: Format) -> torch.Tensor:
    rows, columns = len(raw), raw.shape[1] // type.fields.itemsize * type.columns
    out = torch.zeros(format.matrix_bytes(rows, columns), dtype=torch.uint8)
    pack_blocks(raw, type, format, out)
    return out


def test_every_type_is_known_to_ggml():
    for number, type in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (type.name, (type.columns, type.fields.itemsize))
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert all(known.get(number, name) == name for number, name in UNSUPPORTED.items())
    assert known.keys() <= BLOCK_TYPES.keys() | UNSUPPORTED.keys()
    assert sorted([*BLOCK_TYPES, *UNSUPPORTED, *REMOVED]) == list(range(43))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(300, 256), (70, 1024)])
def test_values_are_ggmls(name, rows, columns):
    raw = random_blocks(name, rows, columns)
    assert same_bits(TYPES[name].values(raw), ggml_values(name, raw))


@pytest.mark.parametrize("name", TYPES)
def test_values_of_odd_blocks_are_ggmls(name):
    raw = hostile_blocks(name)
    assert same_bits(TYPES[name].values(raw), ggml_values(name, raw))


@pytest.mark.parametrize("name", SAME_VALUES)
@pytest.mark.parametrize(("rows", "columns"), [(16, 256), (48, 512), (40, 256)])
def test_repacking_keeps_every_value(name, rows, columns):
    type, raw = TYPES[name], random_blocks(name, rows, columns)
    format = own_format(type)
    packed = packed_blocks(raw, type, format)
    assert np.array_equal(unpack(packed, rows, columns, format).numpy(), type.values(raw))
    assert squared_error(raw, type, packed, format)[0] == 0


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_repacked_bytes_are_those_of_packing_the_weights(name):
    weights = torch.randn(32, 64)
    kind, format = gguf.GGMLQuantizationType[name], own_format(TYPES[name])
    raw = gguf.quants.quantize(weights.numpy(), kind)
    assert torch.equal(packed_blocks(raw, TYPES[name], format), pack(weights, format))


@pytest.mark.parametrize("name", TYPES)
def test_any_type_can_be_packed_otherwise(name):
    type, raw = TYPES[name], random_blocks(name, 16, 256)
    values = torch.from_numpy(type.values(raw))
    assert torch.equal(packed_blocks(raw, type, FORMATS["f32"]), pack(values, FORMATS["f32"]))


@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(name, value):
    type, raw = TYPES[name], random_blocks(name, 16, 256)
    assert type.finite(raw)
    odd = np.array([value], dtype="<f4")
    type.blocks(raw)[3, 0] = odd.view("<u4")[0] >> 16 if name == "BF16" else odd[0]
    assert not type.finite(raw)
    with pytest.raises(DaliError, match="NaN or infinite"):
        packed_blocks(raw, type, own_format(type))


SCALES = [(name, field) for name, fields in HALVES.items() for field in fields] + [("IQ1_M", "d")]


@pytest.mark.parametrize(("name", "field"), SCALES)
def test_scales_that_are_not_finite(name, field):
    type, raw = TYPES[name], random_blocks(name, 16, 256)
    assert type.finite(raw)
    for value in (np.nan, np.inf, -np.inf):
        odd = raw.copy()
        put_scale(name, field, type.blocks(odd)[3:4, :1], np.float16([[value]]))
        assert not type.finite(odd)
        with pytest.raises(DaliError, match=f"A scale of {name} is NaN or infinite"):
            packed_blocks(odd, type, own_format(type))


@pytest.mark.parametrize(
    ("name", "field", "nan"), [("MXFP4", "e", 255), ("NVFP4", "d", 127), ("NVFP4", "d", 255)]
)
def test_bytes_of_scales_that_are_nan(name, field, nan):
    type, raw = TYPES[name], random_blocks(name, 16, 64)
    assert type.finite(raw)
    type.blocks(raw)[field][5, -1:] = nan
    assert not type.finite(raw)
    with pytest.raises(DaliError, match=f"A scale of {name} is NaN"):
        packed_blocks(raw, type, own_format(type))


def one_by_one(raw: np.ndarray, type: BlockType, monkeypatch) -> list[torch.Tensor]:
    """What torch's kernels and the compiled ones pack."""
    packed = []
    for kernels in ("torch", ""):
        monkeypatch.setenv(native.VARIABLE, kernels)
        packed.append(packed_blocks(raw, type, own_format(type)))
    return packed


BLOCKS = sorted(SAME_VALUES.keys() - FLOATS)


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", [48, 40])
def test_both_kernels_pack_to_the_same_bytes(name, rows, monkeypatch):
    assert torch.equal(*one_by_one(random_blocks(name, rows, 512), TYPES[name], monkeypatch))


def test_a_type_in_a_format_that_cannot_hold_it():
    type, raw = TYPES["Q6_K"], random_blocks("Q6_K", 16, 256)
    type.blocks(raw)["d"] = 60000
    with pytest.raises(DaliError, match="w8 cannot hold a weight of magnitude"):
        packed_blocks(raw, type, FORMATS["w8"])


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("name", BLOCKS)
def test_rows_of_a_packed_matrix_are_the_files(name):
    type, raw = TYPES[name], random_blocks(name, 40, 512)
    format, wanted = own_format(type), torch.tensor([39, 0, 17, 17])
    found = native.rows_of(packed_blocks(raw, type, format), 512, format, wanted)
    assert torch.equal(found, torch.from_numpy(type.values(raw))[wanted])


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("name", BLOCKS)
def test_the_compiled_decoding_gives_the_same_values(name):
    type = TYPES[name]
    raw = random_blocks(name, 5, 512)
    decoded = torch.empty(5, 512)
    native.dequantize_blocks(torch.from_numpy(raw), name, decoded.numel() // type.columns, decoded)
    assert same_bits(decoded.numpy(), type.values(raw))


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("name", BLOCKS)
def test_the_compiled_decoding_of_odd_blocks_gives_the_same_bits(name):
    type = TYPES[name]
    raw = np.concatenate([rows for rows in np.split(hostile_blocks(name), 64) if type.finite(rows)])
    decoded = torch.empty(len(raw), type.columns)
    native.dequantize_blocks(torch.from_numpy(raw), name, len(raw), decoded)
    assert np.array_equal(decoded.numpy().view(np.uint32), type.values(raw).view(np.uint32))
