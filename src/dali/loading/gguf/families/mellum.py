"""Mellum2."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    window = keys.key("attention.sliding_window", 0)
    return {
        "head_dim": keys.required("attention.key_length"),
        "moe_intermediate_size": keys.expert_width(),
        "norm_topk_prob": True,
        "sliding_window": window or None,
        "layer_types": keys.windows(4) if window else ["full_attention"] * keys.layers,
        "mlp_layer_types": keys.kinds(),
        "rope_parameters": keys.rope_by_kind(),
    }


FAMILY = Family(
    "mellum",
    "mellum",
    "num_experts",
    _fields,
)
