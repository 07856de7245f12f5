"""Poolside's Laguna."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    window, head = keys.key("attention.sliding_window", 0), keys.required("attention.key_length")
    gate, heads = keys.shape("attn_gate"), keys.per_layer("attention.head_count")
    rope = keys.rope_by_kind()
    rope["full_attention"]["partial_rotary_factor"] = keys.rotary(head)
    rope["sliding_attention"]["partial_rotary_factor"] = keys.rotary(head, "rope.dimension_count_swa")
    return {
        "head_dim": head,
        "num_attention_heads_per_layer": heads,
        "num_attention_heads": heads[0],
        "gating": True if gate is None or gate[0] in heads else "per-element",
        "moe_intermediate_size": keys.expert_width(),
        "shared_expert_intermediate_size": (keys.shape("ffn_up_shexp") or (0,))[0],
        "moe_routed_scaling_factor": float(keys.key("expert_weights_scale", 1.0, NUMBER)),
        "mlp_layer_types": keys.kinds(),
        "sliding_window": window or None,
        "layer_types": keys.windows(4, full_first=True) if window else ["full_attention"] * keys.layers,
        "attention_bias": keys.shape("attn_q", "bias") is not None,
        "rope_parameters": rope,
    }


FAMILY = Family(
    "laguna",
    "laguna",
    "num_experts",
    _fields,
    blocks={
        "attn_gate": "self_attn.g_proj",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        **shared_experts(),
    },
    gating=SIGMOID,
)
