"""Granite-3's MoE models, with a shared expert or without."""

from __future__ import annotations

from dataclasses import replace

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, Fields, Keys
from dali.loading.gguf.parts import PAIRWISE, Part, halves


def multipliers(keys: Keys) -> Fields:
    """What Granite multiplies by; llama.cpp's defaults for files that do not say."""
    head = keys.key("attention.key_length") or keys.per_head()
    return {
        "intermediate_size": keys.expert_width(),
        "shared_intermediate_size": (keys.shape("ffn_up_shexp") or (0,))[0],
        "embedding_multiplier": float(keys.key("embedding_scale", 1.0, NUMBER)),
        "residual_multiplier": float(keys.key("residual_scale", 1.0, NUMBER)),
        "logits_scaling": float(keys.key("logit_scale", 1.0, NUMBER)),
        "attention_multiplier": float(keys.key("attention.scale", None, NUMBER) or head**-0.5),
        "attention_bias": keys.shape("attn_q", "bias") is not None,
    }


def _form(keys: Keys) -> Family:
    return FAMILY if keys.shape("ffn_up_shexp") is None else replace(FAMILY, model_type="granitemoeshared")


BLOCKS = {
    "ffn_gate_inp": "block_sparse_moe.router",
    "ffn_down_shexp": "shared_mlp.output_linear",
}
SHARED: dict[str, Part] = {
    "shared_mlp.input_linear.weight": halves("ffn_gate_shexp.weight", "ffn_up_shexp.weight")
}
FAMILY = Family(
    "granitemoe",
    "granitemoe",
    "num_local_experts",
    multipliers,
    blocks=BLOCKS,
    made=PAIRWISE | SHARED,
    form=_form,
)
