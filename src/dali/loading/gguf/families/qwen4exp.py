"""Qwen3.8-Flash-Next, without its embeddings of n-grams: hyper-connections in place of norms, an index in attention."""

from __future__ import annotations

from typing import Any

from dali.errors import DaliError
from dali.loading.gguf.families import Family, qwen35moe
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Made, Part, Shape, joined, less_one


def _fields(keys: Keys) -> Fields:
    if "ple.layers" in keys or keys.has("per_layer_token_embd.weight"):
        raise DaliError(
            f"{keys.gguf.path} has embeddings of n-grams, which dali cannot read as GGUF.",
            "Use its safetensors weights.",
        )
    fields = qwen35moe.FAMILY.fields(keys)
    fields["layer_types"] = [kind.replace("full", "indexed") for kind in fields["layer_types"]]
    return fields | {
        "norm_topk_prob": True,
        "hc_count": keys.required("hyper_connection.count"),
        "hc_lowrank": keys.required("hyper_connection.low_rank"),
        "indexer_n_heads": keys.required("attention.indexer.head_count"),
        "indexer_kv_heads": 1,
        "indexer_head_dim": keys.required("attention.indexer.key_length"),
        "indexer_budget": keys.required("attention.indexer.top_k"),
        "indexer_compress_ratio": keys.largest("attention.compress_ratios"),
        "ple_layer_ids": [],
    }


def _queries_and_keys(config: Any, shape: Shape) -> list[Shape]:
    queries = config.indexer_n_heads * config.indexer_head_dim
    return [(queries, shape[1]), (shape[0] - queries, shape[1])]


INDEX: dict[str, Part] = {
    "self_attn.indexer.index_qk_proj.weight": Made(
        ("indexer.q_proj.weight", "indexer.k_proj.weight"),
        joined,
        _queries_and_keys,
    ),
    "self_attn.indexer.q_layernorm.weight": less_one("indexer.q_norm.weight"),
    "self_attn.indexer.k_layernorm.weight": less_one("indexer.k_norm.weight"),
}
HYPER: dict[str, Part] = {
    "attn_hyper_connection.hc_norm.weight": less_one("hc_attn_norm.weight"),
    "mlp_hyper_connection.hc_norm.weight": less_one("hc_ffn_norm.weight"),
    "hyper_connection_mixer.hc_norm.weight": less_one("output_hc_norm.weight"),
}
FAMILY = Family(
    "qwen4exp",
    "qwen4_exp_text",
    "num_experts",
    _fields,
    blocks=dict(qwen35moe.FAMILY.blocks)
    | {
        "hc_attn_inject": "attn_hyper_connection.block_inject_weight",
        "hc_attn_down": "attn_hyper_connection.input_mix_weight_down",
        "hc_attn_up": "attn_hyper_connection.input_mix_weight_up",
        "hc_ffn_inject": "mlp_hyper_connection.block_inject_weight",
        "hc_ffn_down": "mlp_hyper_connection.input_mix_weight_down",
        "hc_ffn_up": "mlp_hyper_connection.input_mix_weight_up",
    },
    top={
        "output_hc_down": "hyper_connection_mixer.input_mix_weight_down",
        "output_hc_up": "hyper_connection_mixer.input_mix_weight_up",
    },
    made=dict(qwen35moe.FAMILY.made) | INDEX | HYPER,
)
