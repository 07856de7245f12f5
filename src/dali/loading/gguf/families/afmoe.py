"""Arcee's Trinity."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    window = keys.key("attention.sliding_window", 0)
    return {
        "head_dim": keys.required("attention.key_length"),
        "moe_intermediate_size": keys.expert_width(),
        "num_dense_layers": keys.key("leading_dense_block_count", 0),
        "num_shared_experts": keys.required("expert_shared_count"),
        "route_scale": float(keys.key("expert_weights_scale", 1.0, NUMBER)),
        "sliding_window": window or None,
        "layer_types": keys.windows(4) if window else ["full_attention"] * keys.layers,
        "mup_enabled": True,
        "attention_bias": keys.shape("attn_q", "bias") is not None,
    }


FAMILY = Family(
    "afmoe",
    "afmoe",
    "num_experts",
    _fields,
    blocks={
        "attn_gate": "self_attn.gate_proj",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_mlp_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
        "ffn_gate_inp": "mlp.router.gate",
        "exp_probs_b.bias": "mlp.expert_bias",
        **shared_experts(),
    },
    gating=SIGMOID,
)
