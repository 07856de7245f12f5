"""GLM-4.5, GLM-4.6 and their Air."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    head = keys.key("attention.key_length") or keys.per_head()
    return {
        "head_dim": head,
        "moe_intermediate_size": keys.expert_width(),
        "n_shared_experts": keys.required("expert_shared_count"),
        "first_k_dense_replace": keys.key("leading_dense_block_count", 0),
        **keys.grouped_routing(),
        "norm_topk_prob": keys.key("expert_weights_norm", True, bool),
        "use_qk_norm": keys.has("blk.0.attn_q_norm.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "rope_parameters": keys.rope() | {"partial_rotary_factor": keys.rotary(head)},
    }


FAMILY = Family(
    "glm4moe",
    "glm4_moe",
    "n_routed_experts",
    _fields,
    blocks={
        "post_attention_norm": "post_attention_layernorm",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        **shared_experts(),
    },
    gating=SIGMOID,
)
