"""Models for images and text as they are published: their text part loads, and gives transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.loading.context import check_context
from dali.loading.skeleton import text_model
from families import randomize, save_model
from families_sweep.tiny import Variant, folders
from logits import expected_logits, largest_difference, random_prompts

TOLERANCE = 5e-5  # as the sweep's
TOWER = {
    "num_hidden_layers": 1,
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "head_dim": 8,
    "out_hidden_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "position_embedding_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
PUBLISHED = [
    Variant("aria", "aria"),
    Variant("gemma4", "gemma4"),
    Variant("glm4v_moe", "glm4v_moe"),
    Variant("qwen3_vl_moe", "qwen3_vl_moe"),
    Variant("mistral4", "mistral3", text="mistral4"),
]


def save_with_towers(variant: Variant, directory: Path) -> Any:
    """Write a tiny model of all parts; returns it."""
    config = variant.config
    towers = {}
    for name in config.sub_configs.keys() - {"text_config"}:
        tower = getattr(config, name)
        if tower is not None:
            fields = {
                field: TOWER[field] for field, value in tower.to_dict().items() if field in TOWER and value
            }
            towers[name] = type(tower)(**fields)
    found = text_model(type(config)(text_config=config.text_config, **towers))
    assert found is not None
    cls, config = found
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    randomize(model)
    save_model(model, directory)
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("variant", PUBLISHED, ids=str)
def test_the_text_part_of_a_published_model(variant, tmp_path):
    if variant.folder not in folders():
        pytest.skip(f"this transformers routes {variant.folder} in a way of its own")
    model = save_with_towers(variant, tmp_path / "model")
    prompts = random_prompts((21, 13))
    llm = dali.load(tmp_path / "model", quant="f32")
    assert (
        largest_difference(llm, prompts, [expected_logits(model, tokens) for tokens in prompts]) < TOLERANCE
    )
    assert [name for name, _ in llm.model.model.named_children()] == ["language_model"]


def test_experts_that_lie_transposed_on_disk(tmp_path):
    """As those of Qwen3-VL-MoE do: transformers tells by their shape."""
    model = save_with_towers(Variant("qwen3_vl_moe", "qwen3_vl_moe"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    prompts = random_prompts((9,))
    llm = dali.load(tmp_path / "model", quant="f32")
    assert (
        largest_difference(llm, prompts, [expected_logits(model, tokens) for tokens in prompts]) < TOLERANCE
    )


def test_a_context_is_known_too_long_before_torch_is_imported(tmp_path):
    CONFIG_MAPPING["gemma4"](text_config={"max_position_embeddings": 64}).save_pretrained(tmp_path)
    check_context(tmp_path, dali.LoadOptions(ctx_size=64))
    with pytest.raises(dali.UsageError, match="65"):
        check_context(tmp_path, dali.LoadOptions(ctx_size=65))


def test_a_model_that_generates_text_in_its_own_way_is_refused(tmp_path):
    CONFIG_MAPPING["diffusion_gemma"]().save_pretrained(tmp_path)
    with pytest.raises(dali.DaliError, match="token by token"):
        dali.load(tmp_path)
