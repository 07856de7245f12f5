"""Linears that a file has quantized go to the compiled kernels as they are."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as Type

import dali
from dali.fused.dense import PackedLinear
from dali.kernels import native
from dali.kernels.packing import unpack
from gguf_models import encode_as, gguf_model, save_gguf

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
