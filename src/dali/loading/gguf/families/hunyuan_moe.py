"""Hunyuan-A13B."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "intermediate_size": keys.expert_width(),
        "head_dim": keys.key("attention.key_length") or keys.per_head(),
        "attention_bias": keys.shape("attn_q", "bias") is not None,
    }


FAMILY = Family(
    "hunyuan-moe",
    "hunyuan_v1_moe",
    "num_experts",
    _fields,
    used="moe_topk",
    blocks={
        "attn_q_norm": "self_attn.query_layernorm",
        "attn_k_norm": "self_attn.key_layernorm",
        "ffn_gate_inp": "mlp.gate.wg",
        **shared_experts("mlp.shared_mlp"),
    },
)
