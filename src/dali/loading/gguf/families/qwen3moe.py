"""Qwen3-MoE."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "moe_intermediate_size": keys.expert_width(),
        "head_dim": keys.required("attention.key_length"),
        "norm_topk_prob": True,
    }


FAMILY = Family(
    "qwen3moe",
    "qwen3_moe",
    "num_experts",
    _fields,
)
