"""Gemma 4's MoE models, such as 26B-A4B."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, Fields, Keys


def _fields(keys: Keys) -> Fields:
    layers = keys.windows(6)
    heads = keys.per_layer("attention.head_count_kv", keys.required("attention.head_count"))
    by_kind = dict(zip(layers, heads, strict=True))
    factors = keys.rope_factors("rope_freqs.weight") if keys.has("rope_freqs.weight") else [1.0]
    embedding = keys.top_shape("per_layer_token_embd")
    full = [layer for layer, kind in enumerate(layers) if kind == "full_attention"]
    return {
        "enable_moe_block": True,
        "moe_intermediate_size": keys.expert_width(),
        "head_dim": keys.required("attention.key_length_swa"),
        "global_head_dim": keys.required("attention.key_length"),
        "num_key_value_heads": by_kind.get("sliding_attention", heads[0]),
        "num_global_key_value_heads": by_kind.get("full_attention"),
        "attention_k_eq_v": any(not keys.has(f"blk.{layer}.attn_v.weight") for layer in full),
        "num_kv_shared_layers": keys.key("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": keys.key("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": None if embedding is None else embedding[0],
        "final_logit_softcapping": keys.key("final_logit_softcapping", None, NUMBER),
        "sliding_window": keys.required("attention.sliding_window"),
        "layer_types": layers,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": float(keys.key("rope.freq_base", 1e6, NUMBER)),
                # Frequencies that do not turn are divided by a huge number.
                "partial_rotary_factor": sum(factor == 1 for factor in factors) / len(factors),
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float(keys.key("rope.freq_base_swa", 1e4, NUMBER)),
            },
        },
    }


FAMILY = Family(
    "gemma4",
    "gemma4_text",
    "num_experts",
    _fields,
    used="top_k_experts",
    blocks={
        "layer_output_scale.weight": "layer_scalar",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
        "ffn_gate_inp.weight": "router.proj.weight",
        "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale",
    },
    top={
        "per_layer_token_embd": "embed_tokens_per_layer",
        "per_layer_model_proj": "per_layer_model_projection",
        "per_layer_proj_norm": "per_layer_projection_norm",
    },
)
