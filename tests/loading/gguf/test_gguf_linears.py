"""Linears that a file has quantized go to the compiled kernels as they are."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.fused.dense import PackedLinear
from dali.kernels import native
from dali.kernels.packing import unpack
from dali.loading.gguf.parts import blocks_in_order
from dali.store.gguf.pack import Losses
from dali.store.gguf.reader import read
from gguf_models import encode_as, gguf_model, rewrite, save_gguf
from tiny_architectures import TINY, Unstepped

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")


@pytest.mark.parametrize(
    ("family", "changes"),
    [("qwen3_moe", {"tie_word_embeddings": True}), ("mixtral", {}), ("olmoe", {}), ("qwen2_moe", {})],
)
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0])
def test_packed_linears_hold_the_files_values(family, changes, kind, tmp_path, monkeypatch):
    path = save_gguf(gguf_model(family, **changes), tmp_path / "m.gguf", encode_as(kind))
    monkeypatch.setenv(native.VARIABLE, "torch")
    decoded = dali.load(path, dtype="float32").model.state_dict()
    monkeypatch.delenv(native.VARIABLE)
    packed = {
        name: module
        for name, module in dali.load(path).model.named_modules()
        if isinstance(module, PackedLinear)
    }
    names = [name for name in packed if name == "lm_head" or "self_attn" in name]
    assert len(names) > 8
    for name in names:
        linear = packed[name]
        assert linear.format.name == {"Q4_0": "w4", "Q8_0": "w8"}[kind.name]
        values = unpack(linear.packed, linear.out_features, linear.in_features, linear.format)
        assert torch.equal(values, decoded[f"{name}.weight"]), name


def converted(name: str, folder: Path) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(lzma.decompress((Path(__file__).parent / "converted" / f"{name}.gguf.xz").read_bytes()))
    return path


ORDERED = ["qwen35moe", "qwen3next", "granitehybrid", "nemotron_h_moe", "deepseek2-v3", "glm4moe"]


@pytest.mark.parametrize("name", [name for name in ORDERED if TINY[name][0] in CONFIG_MAPPING])
def test_rows_and_columns_in_another_order_are_packed_as_they_are(name, tmp_path):
    path = converted(name, tmp_path)
    dense = Unstepped(rewrite(path, encode=encode_as(Type.Q8_0))).dense
    decoded, linears = dense.read(torch.float32), dense.read_packed(Losses())
    read([decoded, linears], lambda nbytes: None)
    matrices = linears.finish()
    assert len(matrices) > 4
    if name == "qwen35moe":
        kinds = {path.rpartition(".")[2] for path in matrices}
        assert kinds >= {"in_proj_qkv", "in_proj_z", "out_proj"}
    for path, (packed, format) in matrices.items():
        wanted = decoded.finish()[f"{path}.weight"]
        assert torch.equal(unpack(packed, *wanted.shape, format), wanted), path


@pytest.mark.parametrize(
    ("order", "blocks"),
    [([4, 5, 6, 7, 0, 1, 2, 3], [1, 0]), ([2, 3, 4, 5, 6, 7, 0, 1], None), ([3, 2, 1, 0, 4, 5, 6, 7], None), ([0, 1, 2], None)],
)  # fmt: skip
def test_an_order_of_blocks(order, blocks):
    found = blocks_in_order(np.array(order), 4)
    assert (None if found is None else found.tolist()) == blocks


NOTE = "Linears are converted from {}: relative error {:.2%}."


@pytest.mark.parametrize("name", ["qwen3next", "granitemoe-shared"])
def test_what_several_tensors_make_up_is_packed_anew_and_said(name, tmp_path):
    path = converted(name, tmp_path)
    notes: list[str] = []
    llm = dali.load(rewrite(path, encode=encode_as(Type.Q4_0)), notify=notes.append)
    ((conversion, error),) = llm.stats()["converted_linears"].items()
    assert conversion.endswith("to w8")
    assert 0 < error < 0.01
    assert NOTE.format(conversion, error) in notes
    assert llm.stats()["converted"] == {}


def test_without_kernels_linears_are_rounded_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    path = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf", encode_as(Type.Q8_0))
    notes: list[str] = []
    llm = dali.load(path, notify=notes.append)
    ((conversion, error),) = llm.loaded.converted_linears.items()
    assert conversion == "Q8_0 to bfloat16"
    assert 1e-4 < error < 4e-3  # half a unit in the last of 8 bits, at most
    assert NOTE.format(conversion, error) in notes
    assert dali.load(path, dtype="float32").loaded.converted_linears == {}


def test_linears_in_floats_stay_so_beside_quantized_experts(tmp_path):
    def encode(name, values):
        kind = Type.BF16 if "attn_q.w" in name else Type.F16 if "attn_k.w" in name else Type.Q8_0
        return encode_as(kind)(name, values)

    llm = dali.load(save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf", encode))
    attention = llm.model.model.layers[0].self_attn
    names = [getattr(attention, f"{part}_proj").format.name for part in "qkvo"]
    assert names == ["bf16", "f16", "w8", "w8"]
    assert llm.engine.decoder is not None


def test_blocks_that_predict_more_tokens_are_left_out_and_said(tmp_path):
    notes: list[str] = []
    dali.load(converted("qwen3next", tmp_path), notify=notes.append)
    assert [note for note in notes if "predict" in note] == [
        "The model's files can predict tokens after the next one, too (blk.4), which is left out."
    ]
