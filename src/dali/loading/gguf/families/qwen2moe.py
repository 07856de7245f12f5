"""Qwen2-MoE, Qwen1.5-MoE."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "moe_intermediate_size": keys.expert_width(),
        "shared_expert_intermediate_size": (keys.shape("ffn_up_shexp") or (0,))[0],
        "qkv_bias": keys.has("blk.0.attn_q.bias"),
    }


FAMILY = Family(
    "qwen2moe",
    "qwen2_moe",
    "num_experts",
    _fields,
    blocks={
        "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
        **shared_experts("mlp.shared_expert"),
    },
)
