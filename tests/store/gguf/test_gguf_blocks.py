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
from dali.store.gguf.blocks import BLOCK_TYPES, UNSUPPORTED, BlockType
from dali.store.gguf.pack import SAME_VALUES, own_format, pack_blocks, squared_error

TYPES = {type.name: type for type in BLOCK_TYPES.values()}


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Any bytes, but scales that are finite: uint8 [rows, row bytes]."""
    generator = np.random.default_rng(seed)
    type = TYPES[name]
    raw = generator.integers(0, 256, (rows, type.row_bytes(columns)), dtype=np.uint8)
    blocks = type.blocks(raw)
    if type.fields.names is None:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        blocks[...] = values.view("<u4") >> 16 if name == "BF16" else values
    for field in {"d", "m", "dmin"} & set(type.fields.names or ()):
        blocks[field] = generator.uniform(-1, 1, blocks.shape)
    if name == "MXFP4":
        blocks["e"] = generator.integers(0, 250, blocks.shape)
    return raw


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
    assert all(known[number] == name for number, name in UNSUPPORTED.items())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("columns", [256, 1024])
def test_values_are_ggmls(name, columns):
    raw = random_blocks(name, 300, columns)
    kind = gguf.GGMLQuantizationType[name]
    plain = {"F32": np.float32, "F16": np.float16}.get(name)
    expected = gguf.quants.dequantize(raw if plain is None else raw.view(plain), kind)
    assert np.array_equal(TYPES[name].values(raw), expected)


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


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K", "Q6_K", "F16", "BF16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_not_finite(name, value):
    type, raw = TYPES[name], random_blocks(name, 16, 256)
    blocks = type.blocks(raw)
    if name == "BF16":
        blocks[3, 0] = np.array([value], dtype="<f4").view("<u4")[0] >> 16
    elif type.fields.names:
        blocks["d"][3, 0] = value
    else:
        blocks[3, 0] = value
    with pytest.raises(DaliError, match="NaN or infinite"):
        packed_blocks(raw, type, own_format(type))


def test_mxfp4s_nan():
    raw = random_blocks("MXFP4", 16, 64)
    TYPES["MXFP4"].blocks(raw)["e"][5, 1] = 255
    with pytest.raises(DaliError, match="NaN"):
        packed_blocks(raw, TYPES["MXFP4"], FORMATS["mxfp4"])


def one_by_one(raw: np.ndarray, type: BlockType, monkeypatch) -> list[torch.Tensor]:
    """What torch's kernels and the compiled ones pack."""
    packed = []
    for kernels in ("torch", ""):
        monkeypatch.setenv(native.VARIABLE, kernels)
        packed.append(packed_blocks(raw, type, own_format(type)))
    return packed


BLOCKS = sorted(TYPES.keys() - {"F32", "F16", "BF16"})


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
@pytest.mark.parametrize("name", native.DEQUANTIZED)
def test_the_compiled_decoding_gives_the_same_values(name):
    type = TYPES[name]
    raw = random_blocks(name, 5, 512)
    decoded = torch.empty(5, 512)
    native.dequantize_blocks(torch.from_numpy(raw), name, decoded.numel() // type.columns, decoded)
    assert torch.equal(decoded.view(torch.int32), torch.from_numpy(type.values(raw)).view(torch.int32))
