"""Checkpoints: every expert of every family equals the stock parameters; and damage of every kind."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.conversion_mapping import get_model_conversion_mapping

from dali.errors import DaliError
from dali.hooks.seam import describe_model, experts_modules
from dali.kernels.expert import ExpertWeights
from dali.store.checkpoint import INDEX, OPEN_SHARDS, SINGLE, Checkpoint, CheckpointExperts
from families import FAMILIES, random_model, save_model, save_mxfp4_model

EXPERTS = "model.layers.0.mlp.experts."


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Qwen3-MoE of two layers and its directory, which tests must not change."""
    model = random_model("qwen3_moe", num_hidden_layers=2)
    return model, save_model(model, tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture
def directory(saved, tmp_path):
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


def experts_of(model, directory: Path) -> CheckpointExperts:
    """The experts in `directory`, which holds a model like `model`."""
    modules = describe_model(model, str(directory))
    return CheckpointExperts(Checkpoint(directory), modules, get_model_conversion_mapping(model), model)


def stock_expert(model, layer: int, expert: int) -> ExpertWeights:
    module = list(experts_modules(model).values())[layer]
    names = ["gate_up_proj", "down_proj"]
    names += [f"{name}_bias" for name in names if module.has_bias]
    info = describe_model(model, "")[layer]
    return info.canonical(*(getattr(module, name).detach()[expert] for name in names))


def assert_equals_stock(source: CheckpointExperts, model) -> None:
    for layer, module in enumerate(source.modules):
        for expert in range(module.experts):
            ours, expected = source.read(layer, expert), stock_expert(model, layer, expert)
            for name, part in vars(expected).items():
                assert (getattr(ours, name) is None) == (part is None), name
                if part is not None:
                    assert getattr(ours, name).dtype == part.dtype, name
                    assert torch.equal(getattr(ours, name), part), (layer, expert, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_expert_of_every_family_is_bit_equal(family, dtype, tmp_path):
    """One file and many shards: the pieces of an expert may lie in different ones."""
    model = random_model(family, dtype=dtype)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    save_model(model, whole)
    assert_equals_stock(experts_of(model, whole), model)
    save_model(model, sharded, max_shard_size="60KB")
    assert not (sharded / SINGLE).exists()
    source = experts_of(model, sharded)
    assert len(source.checkpoint.shards) > 2
    assert_equals_stock(source, model)
    assert len(source.checkpoint._open) <= OPEN_SHARDS
    source.checkpoint.close()
    assert not source.checkpoint._open


def fuse(tensors: dict[str, torch.Tensor]) -> None:
    """Per-expert tensors -> one a parameter, the way transformers holds them in memory."""
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        read = lambda e, name: tensors.pop(f"{prefix}{e}.{name}_proj.weight")  # noqa: B023, E731
        tensors[f"{prefix}gate_up_proj"] = torch.stack(
            [torch.cat([read(e, "gate"), read(e, "up")]) for e in range(8)]
        )
        tensors[f"{prefix}down_proj"] = torch.stack([read(e, "down") for e in range(8)])


def change(directory: Path, edit) -> None:
    tensors = load_file(directory / SINGLE)
    edit(tensors)
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


def test_a_fused_checkpoint_is_read_expert_by_expert(saved, directory):
    change(directory, fuse)
    source = experts_of(saved[0], directory)
    assert_equals_stock(source, saved[0])
    assert source.checkpoint.read(f"{EXPERTS}down_proj", 3).shape == (1, 64, 40)


def test_mxfp4_is_decoded_as_transformers_does(tmp_path):
    directory = save_mxfp4_model(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=Mxfp4Config(dequantize=True), experts_implementation="eager"
    )
    source = experts_of(random_model("gpt_oss", intermediate_size=64), directory)
    assert_equals_stock(source, stock)
    change(directory, lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj_scales"))
    with pytest.raises(
        DaliError, match=r"Expert 0 of model.layers.1.mlp.experts .*cannot be made of _blocks"
    ):
        experts_of(stock, directory).read(1, 0)


# Damaged files


def error_of(directory: Path) -> str:
    with pytest.raises(DaliError) as error:
        _ = Checkpoint(directory).location
    return error.value.problem


@pytest.mark.parametrize("length", [0, 5, 8, 100, 5000, 100_000, -1])
def test_a_truncated_shard(directory, length):
    content = (directory / SINGLE).read_bytes()
    (directory / SINGLE).write_bytes(content[:length])
    assert f"{directory / SINGLE} is damaged" in error_of(directory)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"[" * 100_000,
        b"{",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e99]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "data_offsets": [0, 4]}}',
        b"\xff\xfe",
    ],
)
def test_a_corrupted_header(directory, header):
    (directory / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert f"{directory / SINGLE} is damaged" in error_of(directory)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**32, 10**8 + 1])
def test_a_hostile_header_length(directory, length):
    (directory / SINGLE).write_bytes(struct.pack("<Q", length) + b"{}")
    assert f"{directory / SINGLE} is damaged" in error_of(directory)


def test_no_weights(directory):
    (directory / SINGLE).unlink()
    assert error_of(directory) == f"{directory} lacks model.safetensors, its weights."
    (directory / SINGLE).mkdir()
    assert error_of(directory) == f"{directory} lacks model.safetensors, its weights."


@pytest.fixture
def sharded(directory):
    """The same model in three shards and an index."""
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    weight_map = {}
    for i in range(3):
        part = dict(sorted(tensors.items())[i::3])
        save_file(part, directory / f"shard{i}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, f"shard{i}.safetensors")
    write_index(directory, weight_map)
    return directory


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_may_be_links_as_in_the_hub_cache(saved, sharded, tmp_path):
    for shard in sharded.glob("*.safetensors"):
        shard.symlink_to(shard.rename(tmp_path / shard.stem))
    assert_equals_stock(experts_of(saved[0], sharded), saved[0])


def test_a_missing_shard(sharded):
    (sharded / "shard1.safetensors").unlink()
    assert error_of(sharded) == f"{sharded} lacks shard1.safetensors, which {INDEX} lists."
    (sharded / "shard1.safetensors").mkdir()
    assert error_of(sharded) == f"{sharded} lacks shard1.safetensors, which {INDEX} lists."


def test_a_truncated_shard_of_several(sharded):
    os.truncate(sharded / "shard2.safetensors", 9000)
    assert f"{sharded / 'shard2.safetensors'} is damaged" in error_of(sharded)


def test_an_index_that_lists_a_tensor_no_shard_has(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, weight_map | {"model.ghost": "shard0.safetensors"})
    assert "shard0.safetensors lacks the tensor model.ghost" in error_of(sharded)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", "{}", "[" * 100_000),
        *('{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": "a"}', '{"weight_map": {"a": 1}}'),
        *('{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}'),
    ],
)
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    assert f"The index {sharded / INDEX} is damaged" in error_of(sharded)


def test_an_index_that_is_no_text(sharded):
    (sharded / INDEX).write_bytes(b"\xff\xfe\xfd")
    assert f"The index {sharded / INDEX} is damaged" in error_of(sharded)


@pytest.mark.parametrize(
    "shard", ["../../etc/passwd", "/etc/passwd", "sub/shard0.safetensors", "../model.safetensors", "."]
)
def test_an_index_that_leaves_the_directory(sharded, shard):
    shutil.copy(sharded / "shard0.safetensors", sharded.parent / SINGLE)
    (sharded / "sub").mkdir()
    shutil.copy(sharded / "shard0.safetensors", sharded / "sub")
    write_index(sharded, {"lm_head.weight": shard})
    assert f"{shard!r} does not name a file beside it" in error_of(sharded)


@pytest.mark.parametrize("shard", ["", "..", "a\0b", "x" * 5000, "none.safetensors"])
def test_an_index_that_names_no_file(sharded, shard):
    write_index(sharded, {"lm_head.weight": shard})
    assert f"lacks {shard}, which" in error_of(sharded)


def test_a_single_file_is_preferred_to_an_index_as_in_transformers(saved, directory):
    (directory / INDEX).write_text("{")
    assert_equals_stock(experts_of(saved[0], directory), saved[0])


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            lambda t: [t.pop(f"{EXPERTS}7.{name}_proj.weight") for name in ("gate", "up", "down")],
            "has 7 experts in model.layers.0.mlp.experts.gate_up_proj, its config says 8",
        ),
        (
            lambda t: t.pop(f"{EXPERTS}2.down_proj.weight"),
            "has 7 experts in model.layers.0.mlp.experts.down_proj",
        ),
        (lambda t: t.update({f"{EXPERTS}8.up_proj.weight": torch.zeros(40, 64)}), "has 9 experts"),
        (
            lambda t: [t.pop(f"{EXPERTS}{e}.down_proj.weight") for e in range(8)],
            "has no weights for model.layers.0.mlp.experts.down_proj",
        ),
        (lambda t: (fuse(t), t.update({f"{EXPERTS}down_proj": torch.zeros(7, 64, 40)})), "has 7 experts"),
        (lambda t: (fuse(t), t.update({f"{EXPERTS}down_proj": torch.tensor(1.0)})), "has 0 experts"),
    ],
    ids=[
        "an expert less",
        "a matrix less",
        "a matrix more",
        "no down",
        "fused, an expert less",
        "fused scalar",
    ],
)
def test_a_wrong_number_of_experts_is_noticed_before_any_work(saved, directory, edit, problem):
    change(directory, edit)
    with pytest.raises(DaliError, match=problem):
        experts_of(saved[0], directory)


def replaced(name: str, value: torch.Tensor):
    return lambda tensors: tensors.update({f"{EXPERTS}3.{name}_proj.weight": value})


@pytest.mark.parametrize(
    ("edit", "detail"),
    [
        (replaced("up", torch.zeros(41, 64)), r"expected floats \[40, 64\]"),
        (
            replaced("down", torch.zeros(40, 64)),
            r"down is torch.float32 \[40, 64\], expected floats \[64, 40\]",
        ),
        (replaced("down", torch.zeros(64)), r"down is torch.float32 \[64\]"),
        (replaced("down", torch.tensor(1.0)), r"down is torch.float32 \[\]"),
        (replaced("down", torch.zeros(64, 40, 1)), r"down is torch.float32 \[64, 40, 1\]"),
        (replaced("down", torch.zeros(64, 40, dtype=torch.int8)), "down is torch.int8"),
        (replaced("up", torch.zeros(64, 40)), "Sizes of tensors must match"),
    ],
)
def test_an_expert_of_the_wrong_shape(saved, directory, edit, detail):
    change(directory, edit)
    source = experts_of(saved[0], directory)
    source.read(0, 2)
    with pytest.raises(DaliError, match=f"Expert 3 of model.layers.0.mlp.experts .*does not fit.*{detail}"):
        source.read(0, 3)


def test_experts_without_their_up_half(saved, directory):
    change(directory, lambda t: [t.pop(f"{EXPERTS}{e}.up_proj.weight") for e in range(8)])
    with pytest.raises(DaliError, match=r"Expert 0 of model.layers.0.mlp.experts .*does not fit"):
        experts_of(saved[0], directory).read(0, 0)


def test_fused_and_separate_experts_at_once(saved, directory):
    change(directory, lambda t: t.update({f"{EXPERTS}gate_up_proj": torch.zeros(8, 80, 64)}))
    with pytest.raises(DaliError, match="cannot be made of None"):
        experts_of(saved[0], directory).read(0, 0)


def test_a_bias_of_the_wrong_length(tmp_path):
    model = random_model("gpt_oss", num_hidden_layers=1, layer_types=["full_attention"])
    directory = save_model(model, tmp_path / "model")
    change(directory, lambda t: t.update({f"{EXPERTS}down_proj_bias": torch.zeros(6, 65)}))
    with pytest.raises(DaliError, match=r"down_bias is torch.float32 \[65\], expected floats \[64\]"):
        experts_of(model, directory).read(0, 0)


def test_a_shard_that_shrinks_after_it_was_checked(saved, directory):
    source = experts_of(saved[0], directory)
    os.truncate(directory / SINGLE, 20_000)
    with pytest.raises(DaliError, match=f"Cannot read .* from {directory / SINGLE}"):
        source.read(0, 0)


def test_the_fingerprint_follows_every_file(sharded):
    def fingerprint() -> str:
        return Checkpoint(sharded).fingerprint

    seen = {fingerprint()}
    assert fingerprint() in seen
    stat = (sharded / "shard1.safetensors").stat()
    os.utime(sharded / "shard1.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint() not in seen
    seen.add(fingerprint())
    config = sharded / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    assert fingerprint() not in seen
    seen.add(fingerprint())
    os.rename(sharded / "shard0.safetensors", sharded / "shard9.safetensors")
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, {name: shard.replace("shard0", "shard9") for name, shard in weight_map.items()})
    assert fingerprint() not in seen


def test_one_expert_of_a_fused_tensor_in_fp8_with_its_own_scales(tmp_path):
    weight = torch.randn(3, 30, 40, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.arange(1.0, 13).view(3, 2, 2)
    save_file({"experts.up_proj": weight, "experts.up_proj_scale_inv": scales}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": {"weight_block_size": [16, 32]}})
    )
    found = Checkpoint(tmp_path).read("experts.up_proj", 1)
    for row, column in ((0, 0), (15, 31), (16, 31), (29, 39)):
        expected = weight[1, row, column].float() * scales[1, row // 16, column // 32]
        assert found[0, row, column] == expected
