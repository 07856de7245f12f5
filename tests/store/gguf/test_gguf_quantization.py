"""What a file is called: by its name, its metadata or its tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from dali.store.gguf.blocks import BLOCK_TYPES
from dali.store.gguf.header import Gguf, GgufTensor
from dali.store.gguf.quantization import FILE_TYPES, bytes_by_type, quantization

TYPES = {type.name: type for type in BLOCK_TYPES.values()}


def model(name: str = "m.gguf", file_type: object = None, types: tuple[str, ...] = ("Q4_K", "F32")) -> Gguf:
    """Rows of 256 values of each type, fewer of each further one."""
    tensors = {
        type: GgufTensor(type, Path(name), TYPES[type], (64 >> 3 * place, 256), 0)
        for place, type in enumerate(types)
    }
    return Gguf(Path(name), {} if file_type is None else {"general.file_type": file_type}, tensors)


def test_numbers_are_those_of_gguf():
    known = {
        kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType
    }
    assert {number: known[number] for number in FILE_TYPES} == FILE_TYPES
    assert set(known.values()) - set(FILE_TYPES.values()) <= {"GUESSED", "Q1_0", "Q2_0"}  # types dali lacks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-30B-A3B-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("Qwen3-235B-A22B-UD-IQ1_S-00001-of-00002.gguf", "UD-IQ1_S"),
        ("qwen1_5-moe-a2.7b-chat-q4_k_m.gguf", "Q4_K_M"),
        ("OLMoE-1B-7B.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Q8_0.gguf", "Q8_0"),
        ("model_BF16.gguf", "BF16"),
        ("Mixtral-Q6_K-imat.gguf", "Q6_K"),
        ("OLMoE-BF16-Q4_0.gguf", "Q4_0"),
        ("Qwen3-F32k-Q5_K_S.gguf", "Q5_K_S"),
    ],
)
def test_a_files_name_comes_first(name, expected):
    assert quantization(model(name, 18)) == expected


@pytest.mark.parametrize(("number", "expected"), [(15, "Q4_K_M"), (1024 + 15, "Q4_K_M"), (10, "Q2_K")])
def test_metadata_say_it_of_a_file_without_a_name(number, expected):
    assert quantization(model("sha256-1f16a.gguf", number)) == expected


@pytest.mark.parametrize("number", [None, 777, -1, "15", True])
def test_else_it_is_the_type_of_most_bytes(number):
    assert quantization(model(file_type=number)) == "Q4_K"


def test_metadata_that_the_tensors_belie():
    assert quantization(model(file_type=1, types=("MXFP4", "F16"))) == "MXFP4"
    assert quantization(model(file_type=15, types=("BF16", "F32"))) == "BF16"
    assert quantization(model(file_type=1, types=("F16", "F32"))) == "F16"


def test_bytes_by_type():
    assert bytes_by_type(model(types=("F32", "IQ1_S"))) == {"F32": 65536, "IQ1_S": 400}
    assert bytes_by_type(model(types=())) == {}
    assert quantization(model(types=())) == "F32"
