"""K-EXAONE."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "head_dim": keys.key("attention.key_length") or keys.per_head(),
        "moe_intermediate_size": keys.expert_width(),
        "num_shared_experts": keys.key("expert_shared_count", 1),
        "mlp_layer_types": keys.kinds(),
        "first_k_dense_replace": keys.key("leading_dense_block_count", 0),
        **keys.grouped_routing(),
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
        **shared_experts(),
    },
    gating=SIGMOID,
)
