"""MiMo-V2-Flash."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys

# Tokens before the query's own that the published models attend to. transformers counts the query's, too; most files do not.
PUBLISHED_WINDOW = 128


def _fields(keys: Keys) -> Fields:
    head, heads = keys.required("attention.key_length"), keys.per_layer("attention.head_count_kv")
    layers, window = keys.windows(1), keys.required("attention.sliding_window")
    full = [count for count, kind in zip(heads, layers, strict=True) if kind == "full_attention"]
    rope = keys.rope_by_kind()
    for one in rope.values():
        one["partial_rotary_factor"] = keys.rotary(head)
    return {
        "head_dim": head,
        "v_head_dim": keys.required("attention.value_length"),
        "num_key_value_heads": full[0] if full else max(heads) // 2,
        "moe_intermediate_size": keys.expert_width(),
        **keys.grouped_routing(),
        "norm_topk_prob": True,
        "attention_value_scale": float(keys.key("attention.value_scale", 1.0, NUMBER)),
        "sliding_window": PUBLISHED_WINDOW + 1 if window == PUBLISHED_WINDOW else window,
        "layer_types": layers,
        "mlp_layer_types": [
            "sparse" if keys.has(f"blk.{layer}.ffn_gate_inp.weight") else "dense"
            for layer in range(keys.layers)
        ],
        "rope_parameters": rope,
    }


FAMILY = Family(
    "mimo2",
    "mimo_v2_flash",
    "n_routed_experts",
    _fields,
    blocks={"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
    gating=SIGMOID,
)
