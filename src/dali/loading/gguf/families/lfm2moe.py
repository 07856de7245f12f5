"""LFM2-8B-A1B: layers of short convolutions between those of attention."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    heads = keys.per_layer("attention.head_count_kv", keys.required("attention.head_count"))
    return {
        "moe_intermediate_size": keys.expert_width(),
        "norm_eps": keys.epsilon,
        "rms_norm_eps": None,
        "num_dense_layers": keys.key("leading_dense_block_count", 0),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": keys.required("shortconv.l_cache"),
        "conv_bias": keys.shape("shortconv.conv", "bias") is not None,
        "use_expert_bias": keys.shape("exp_probs_b", "bias") is not None,
        "routed_scaling_factor": float(keys.key("expert_weights_scale", 1.0, NUMBER)),
        "norm_topk_prob": keys.key("expert_weights_norm", True, bool),
    }


FAMILY = Family(
    "lfm2moe",
    "lfm2_moe",
    "num_experts",
    _fields,
    blocks={
        "attn_norm": "operator_norm",
        "ffn_norm": "ffn_norm",
        "attn_output": "self_attn.out_proj",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "shortconv.conv": "conv.conv",
        "shortconv.in_proj": "conv.in_proj",
        "shortconv.out_proj": "conv.out_proj",
        "ffn_gate": "feed_forward.w1",
        "ffn_down": "feed_forward.w2",
        "ffn_up": "feed_forward.w3",
        "ffn_gate_inp": "feed_forward.gate",
        "exp_probs_b.bias": "feed_forward.expert_bias",
    },
    top={"token_embd_norm": "embedding_norm", "output_norm": "embedding_norm"},
    gating=SIGMOID,
)
