"""OLMoE."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "intermediate_size": keys.expert_width(),
        "clip_qkv": keys.key("attention.clamp_kqv", None, NUMBER),
    }


FAMILY = Family(
    "olmoe",
    "olmoe",
    "num_experts",
    _fields,
)
