"""ERNIE-4.5's MoE models, such as 21B-A3B."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "moe_intermediate_size": keys.expert_width(),
        "moe_num_shared_experts": keys.key("expert_shared_count", 0),
        "moe_layer_start_index": keys.key("leading_dense_block_count", 0),
        "moe_layer_end_index": keys.layers - 1,
        "moe_layer_interval": keys.required("interleave_moe_layer_step"),
        "use_bias": keys.shape("attn_q", "bias") is not None,
    }


FAMILY = Family(
    "ernie4_5-moe",
    "ernie4_5_moe",
    "moe_num_experts",
    _fields,
    used="moe_k",
    blocks={
        "exp_probs_b.bias": "mlp.gate.moe_statics.e_score_correction_bias",
        **shared_experts(),
    },
)
