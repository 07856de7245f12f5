"""Random models of a few shapes, some 0.6 billion weights each, as checkpoints: for measuring speed (prediction_error.py,
prompt_layers.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch

from families import random_model, save_model

COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "hidden_size": 1024,
}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-moe": (
        "qwen3_moe",
        {
            "moe_intermediate_size": 384,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
            "head_dim": 128,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "intermediate_size": 1024,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
    ),
    "qwen3.5-moe": (
        "qwen3_5_moe_text",
        {
            "num_hidden_layers": 8,  # three delta nets to one attention, twice
            "moe_intermediate_size": 384,
            "shared_expert_intermediate_size": 384,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 16,
        },
    ),
    "olmoe": (
        "olmoe",
        {
            "intermediate_size": 512,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 16,
        },
    ),
}


def build(folder: Path, name: str) -> Path:
    """The random model's directory, written unless it is there."""
    path = folder / name
    if not (path / "tokenizer.json").exists():
        family, changes = RANDOM[name]
        print(f"writing {name}", file=sys.stderr, flush=True)
        model = random_model(family, dtype=torch.bfloat16, **(COMMON | changes))
        with (
            torch.no_grad()
        ):  # beside what layers add, so that routing follows each token and not what a context has in common
            model.get_input_embeddings().weight.normal_(0, 1)
        save_model(model, path)
    return path
