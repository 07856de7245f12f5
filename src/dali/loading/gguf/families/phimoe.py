"""Phi-3.5-MoE."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import NUMBER, Fields, Keys


def _fields(keys: Keys) -> Fields:
    rope = keys.rope()
    if keys.has("rope_factors_long.weight"):
        # The file keeps one attention factor; the model's own long and short mscale are not in it.
        factor = float(keys.key("rope.scaling.attn_factor", 1.0, NUMBER))
        rope |= {
            "rope_type": "longrope",
            "long_factor": keys.rope_factors("rope_factors_long.weight"),
            "short_factor": keys.rope_factors("rope_factors_short.weight"),
            "long_mscale": factor,
            "short_mscale": factor,
            "original_max_position_embeddings": keys.required("rope.scaling.original_context_length"),
        }
    return {
        "intermediate_size": keys.expert_width(),
        "sliding_window": keys.key("attention.sliding_window") or None,
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "lm_head_bias": keys.has("output.bias"),
        "rope_parameters": rope,
    }


FAMILY = Family(
    "phimoe",
    "phimoe",
    "num_local_experts",
    _fields,
    blocks={"ffn_gate_inp": "mlp.router"},
    strips_after_tokens=True,
)
