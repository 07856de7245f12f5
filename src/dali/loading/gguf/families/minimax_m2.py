"""MiniMax-M2."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import SIGMOID, Fields, Keys


def _fields(keys: Keys) -> Fields:
    head = keys.required("attention.key_length")
    return {
        "intermediate_size": keys.expert_width(),
        "head_dim": head,
        "rope_parameters": keys.rope() | {"partial_rotary_factor": keys.rotary(head)},
    }


FAMILY = Family(
    "minimax-m2",
    "minimax_m2",
    "num_local_experts",
    _fields,
    blocks={"exp_probs_b.bias": "mlp.e_score_correction_bias"},
    gating=SIGMOID,
)
