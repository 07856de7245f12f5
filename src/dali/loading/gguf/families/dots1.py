"""dots.llm1."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "head_dim": keys.key("attention.key_length") or keys.per_head(),
        "moe_intermediate_size": keys.expert_width(),
        "n_shared_experts": keys.required("expert_shared_count"),
        "first_k_dense_replace": keys.key("leading_dense_block_count", 0),
        **keys.grouped_routing(),
        "norm_topk_prob": keys.key("expert_weights_norm", False, bool),
        "sliding_window": None,
        "layer_types": ["full_attention"] * keys.layers,
    }


FAMILY = Family(
    "dots1",
    "dots1",
    "n_routed_experts",
    _fields,
    blocks={
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        **shared_experts(),
    },
    gating=SIGMOID,
)
