"""Tencent's Hy3."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    width = keys.expert_width()
    return {
        "head_dim": keys.required("attention.key_length"),
        "moe_intermediate_size": width,
        "num_shared_experts": (keys.shape("ffn_up_shexp") or (0,))[0] // max(width, 1),
        "router_scaling_factor": float(keys.key("expert_weights_scale", 1.0, NUMBER)),
        "mlp_layer_types": [
            "sparse" if keys.has(f"blk.{layer}.ffn_gate_inp.weight") else "dense"
            for layer in range(keys.layers)
        ],
    }


FAMILY = Family(
    "hy_v3",
    "hy_v3",
    "num_experts",
    _fields,
    blocks={
        "exp_probs_b": "mlp.e_score_correction_bias",
        "exp_probs_b.bias": "mlp.e_score_correction_bias",
        **shared_experts(),
    },
    gating=SIGMOID,
)
