"""Command A's MoE models."""

from __future__ import annotations

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import NUMBER, SIGMOID, SOFTMAX, Fields, Keys
from dali.store.gguf.header import damaged

SELECTIONS = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}


def _fields(keys: Keys) -> Fields:
    gating = keys.key("expert_gating_func", 0) or SIGMOID
    if gating not in SELECTIONS:
        raise damaged(
            keys.gguf.path, f"its key cohere2moe.expert_gating_func is {gating}, which dali does not know"
        )
    by_squares = "attention.layer_norm_rms_epsilon" in keys
    return {
        "head_dim": keys.required("attention.key_length"),
        "intermediate_size": keys.expert_width(),
        "prefix_dense_intermediate_size": keys.largest("feed_forward_length"),
        "mlp_layer_types": keys.kinds(),
        "layer_norm_eps": None if by_squares else keys.epsilon,
        "rms_norm_eps": keys.epsilon if by_squares else None,
        "num_shared_experts": keys.key("expert_shared_count", 0),
        "expert_selection_fn": SELECTIONS[gating],
        "norm_topk_prob": keys.key("expert_weights_norm", False, bool),
        "logit_scale": float(keys.required("logit_scale", NUMBER)),
        "sliding_window": keys.required("attention.sliding_window"),
        "layer_types": keys.windows(4, full_first=True),
    }


FAMILY = Family(
    "cohere2moe",
    "cohere2_moe",
    "num_experts",
    _fields,
    blocks={
        **shared_experts(),
    },
)
