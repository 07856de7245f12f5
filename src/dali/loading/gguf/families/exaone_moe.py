"""K-EXAONE."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "head_dim": keys.key("attention.key_length") or keys.per_head(),
        "moe_intermediate_size": keys.expert_width(),
        "num_shared_experts": keys.key("expert_shared_count", 1),
        "mlp_layer_types": keys.kinds(),
        "first_k_dense_replace": keys.key("leading_dense_block_count", 0),
        "n_group": keys.key("expert_group_count", 1),
        "topk_group": keys.key("expert_group_used_count", 1),
        "routed_scaling_factor": float(keys.key("expert_weights_scale", 1.0, NUMBER)),
        "norm_topk_prob": keys.key("expert_weights_norm", True, bool),
        "sliding_window": keys.required("attention.sliding_window"),
        "layer_types": keys.windows(4),
    }


FAMILY = Family(
    "exaone-moe",
    "exaone_moe",
    "num_experts",
    _fields,
    blocks={
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    },
    gating=SIGMOID,
)
