"""Headers of safetensors files: what is damaged is told, with the file, and what is odd never passes for something else."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import suppress

import pytest

from dali.doctor.examine import sizes_of
from dali.doctor.outline import read_outline
from dali.doctor.sizes import CannotTell
from dali.errors import DaliError


@pytest.fixture
def model(dali_tiny, tmp_path):
    return shutil.copytree(dali_tiny, tmp_path / "model")


def shard(header: object) -> bytes:
    raw = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(raw)) + raw


def entry(shape=(2, 2), offsets=(0, 16), dtype="F32"):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 100) + b"{}",
        shard(b"no json"),
        shard([]),
        shard({"a": 1}),
        shard(entry()),  # whose bytes are not there
        shard(entry(offsets=(0, 12))) + bytes(12),
        shard(entry(shape=(-2, -2))) + bytes(16),
        shard(entry(shape=("2", 2))) + bytes(16),
        shard(entry()) + bytes(17),
    ],
)
def test_a_damaged_file_is_named(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(DaliError, match=r"model\.safetensors is damaged"):
        read_outline(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "8"},
        {"num_experts_per_tok": None},
        {"num_key_value_heads": -1},
        {"layer_types": [1, 2]},
        {"quantization_config": "gptq"},
        {"text_config": [], "rope_scaling": "yarn"},
        {"max_position_embeddings": 1.5},
    ],
)
def test_values_of_another_kind_are_told_or_left_out(model, changes):
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))
    told = []
    with suppress(DaliError):
        told.append(sizes_of(read_outline(model)).experts)
    assert told in ([], [20])


def test_names_that_nobody_knows_are_no_refusal(model):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content.replace(b".experts.", b".expertz."))
    with pytest.raises(CannotTell, match="under names"):
        sizes_of(read_outline(model))
