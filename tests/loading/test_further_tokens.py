"""Blocks that predict tokens after the next one: recognized, said and left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import dali
from dali.loading.further_tokens import further_blocks
from decoding_families import decoding_model
from families import random_model, save_model
from logits import dali_logits, random_prompts


@pytest.mark.parametrize(
    ("tensors", "blocks"),
    [
        (
            ["model.layers.61.eh_proj.weight", "model.layers.61.enorm.weight", "model.layers.60.mlp.gate.weight"],
            ["model.layers.61"],
        ),
        (["mtp.fc.weight", "mtp.layers.0.mlp.experts.3.up_proj.weight"], ["mtp"]),
        (["model.mtp_block.0.mlp.gate.weight", "model.mtp_emb_norm.0.weight"], ["model.mtp_block", "model.mtp_emb_norm"]),
        (["model.layers.3.self_attn.q_proj.weight", "vision_tower.layers.99.norm.weight"], []),
    ],
)  # fmt: skip
def test_told_by_names(tensors, blocks):
    assert further_blocks(tensors) == blocks


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("deepseek_v3", ("model.layers.2.", "model.layers.3.")),
        ("glm4_moe", ("model.layers.2.", "model.layers.3.")),
        ("qwen3_moe", ("model.layers.2.", "mtp.layers.0.")),
    ],
)
def test_left_out_and_said(tmp_path, monkeypatch, family, changed):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    model = random_model(family) if family == "qwen3_moe" else decoding_model(family)
    directory = save_model(model, tmp_path / "model")
    plain = dali_logits(dali.load(directory, quant="f32"), random_prompts((9,)), 512)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    last, block = changed
    more = {
        name.replace(last, block): tensor + 1 for name, tensor in tensors.items() if name.startswith(last)
    }
    more[f"{block}eh_proj.weight"] = torch.ones(64, 128)
    save_file(tensors | more, path, metadata={"format": "pt"})
    notes: list[str] = []
    llm = dali.load(directory, quant="f32", notify=notes.append)
    where = block.removesuffix(".").removesuffix(".layers.0")
    assert notes == [
        f"The model's files can predict tokens after the next one, too ({where}), which is left out."
    ]
    assert torch.equal(dali_logits(llm, random_prompts((9,)), 512)[0], plain[0])
