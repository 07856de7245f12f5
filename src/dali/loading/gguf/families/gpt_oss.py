"""gpt-oss."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Fields, Keys


def _fields(keys: Keys) -> Fields:
    return {
        "intermediate_size": keys.expert_width(),
        "head_dim": keys.required("attention.key_length"),
        "sliding_window": keys.required("attention.sliding_window"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "rope_parameters": keys.rope(truncate=False),
    }


FAMILY = Family(
    "gpt-oss",
    "gpt_oss",
    "num_local_experts",
    _fields,
    blocks={"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"},
)
