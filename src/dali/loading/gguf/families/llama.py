"""Mixtral, whose files call themselves llama."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import PAIRWISE
from dali.store.gguf.header import damaged


def _fields(keys: Keys) -> Fields:
    rope = keys.rope()
    if keys.has("rope_freqs.weight"):  # Llama 3.1's scaling, worked out for each frequency
        if rope["rope_type"] != "default":
            raise damaged(keys.gguf.path, f"it has both rope_freqs.weight and a {rope['rope_type']} scaling")
        factors = keys.rope_factors("rope_freqs.weight")
        rope |= {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": keys.required("context_length"),
        }
    return {
        "intermediate_size": keys.expert_width(),
        "head_dim": keys.key("attention.key_length") or keys.required("rope.dimension_count"),
        "sliding_window": keys.key("attention.sliding_window") or None,
        "rope_parameters": rope,
    }


FAMILY = Family(
    "llama",
    "mixtral",
    "num_local_experts",
    _fields,
    made=PAIRWISE,
)
