"""Tiny configurations of every MoE family, derived from its own configuration class: sizes shrunk by the names of their fields, and
one layer of each kind that its default depth has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.loading.skeleton import text_model

LAYERS = 3  # at least
# A field's size in tiny. Where a family has None or 0 that part is missing, and stays so.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "vocab_size_per_layer_input": 97,
    "unpadded_vocab_size": 97,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "intermediate_size": 56,
    "dense_intermediate_size": 56,
    "moe_intermediate_size": 40,
    "moe_hidden_size": 40,
    "moe_latent_size": 32,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    "shared_intermediate_size": 48,
    "router_hidden_size": 16,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 3,
    "num_experts_per_token": 3,
    "moe_k": 3,
    "moe_topk": 3,
    "top_k_experts": 3,
    "n_group": 4,
    "num_expert_group": 4,
    "topk_group": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_attention_heads_per_layer": 4,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 12,
    "rotary_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 7,
    "sliding_window_size": 7,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 8,
    "index_kpool": 4,
    "index_block_size": 4,
    "index_topk_blocks": 3,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_head_dim": 32,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_dt_rank": 8,
    "mamba_chunk_size": 8,
    "ssm_state_size": 16,
    "chunk_size": 8,
    "block_size": 8,
    "n_groups": 2,
    "rel_extent": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "gated_norm_rank": 8,
    "hc_lowrank": 16,
    "loop_gate_rank": 8,
    "loop_layer_index_start": 0,
    "loop_layer_index_end": 2,
    "ngram_vocab_size_base": 50,
    "ple_embed_dim": 64,
    "heads_per_ngram": 2,
    "split_ngram_parts": 2,
}
# Of the towers that a text does not pass through.
TOWER_SIZES = SIZES | {
    "num_hidden_layers": 1,
    "depth": 1,
    "num_heads": 4,
    "out_hidden_size": 64,
    "output_hidden_size": 64,
    "image_size": 28,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "num_position_embeddings": 16,
}
SAME = (  # fields that stay equal where the family has them so
    ("num_key_value_heads", "num_attention_heads"),
    ("head_dim", "qk_rope_head_dim"),
    ("head_dim", "qk_head_dim"),
)
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROUTED = {"num_experts": 8, "moe_intermediate_size": 40}
DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2}
LINEAR_AND_FULL = ["linear_attention", "full_attention", "linear_attention"]
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
# What sizes alone do not say, a family's model type -> a variant's name -> its changes. The name "" is the family as it comes.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "cohere2_moe": {"": {"num_shared_experts": 1}},
    "deepseek_v2": {"": DEEPSEEK | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}},
    "dots1": {"": DEEPSEEK, "windows": DEEPSEEK | {"sliding_window": 7, "layer_types": WINDOWS}},
    "flex_olmo": {"": {"num_experts": 7}},
    "gemma4_text": {
        "": ROUTED | {"enable_moe_block": True, "top_k_experts": 3},
        "attending to later tokens": ROUTED
        | {"enable_moe_block": True, "top_k_experts": 3, "use_bidirectional_attention": "all"},
    },
    "granitemoehybrid": {
        "": {"layer_types": LINEAR_AND_FULL},
        "attention alone": {"layer_types": ["full_attention"] * 3},
    },
    "hunyuan_v1_moe": {"": {"head_dim": 16, "num_experts": 8, "moe_topk": 3}},
    "jamba": {"": {"layer_types": LINEAR_AND_FULL}},
    "laguna": {"windows": {"sliding_window": 7, "layer_types": WINDOWS}},
    "lfm2_moe": {"": {"layer_types": ["conv", "full_attention", "conv"]}},
    "mellum": {"windows": {"sliding_window": 7, "layer_types": WINDOWS}},
    "mixtral": {"windows": {"sliding_window": 7}},
    "nemotron_h": {"attention alone": {"layers_block_type": ["full_attention", "moe", "mlp"]}},
    "phimoe": {"windows": {"sliding_window": 7}},
    "qwen2_moe": {"windows": {"sliding_window": 7, "use_sliding_window": True, "layer_types": WINDOWS}},
    "qwen3_moe": {"windows": {"sliding_window": 7, "use_sliding_window": True}},
    "zaya": {"": {"num_experts_per_tok": 1}},
}


@dataclass(frozen=True)
class Variant:
    """One tiny model: a family's model type, what it differs in from the family as it comes, and changes of its configuration."""

    folder: str
    model_type: str
    name: str = ""
    changes: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.model_type} ({self.name})" if self.name else self.model_type

    @property
    def config(self) -> Any:
        """The tiny configuration."""
        published = CONFIG_MAPPING[self.model_type]()
        text = published.get_text_config()
        if text is published:
            return _shrunk(text, self.changes)
        inner = CHANGES.get(text.model_type, {}).get("", {}) | self.changes
        towers = {
            name: _resized(getattr(published, name), TOWER_SIZES)
            for name in published.sub_configs
            if name != "text_config" and getattr(published, name, None) is not None
        }
        return type(published)(text_config=_shrunk(text, inner), **towers)


def _resized(config: Any, sizes: dict[str, Any]) -> Any:
    fields = {name: sizes[name] for name, value in config.to_dict().items() if name in sizes and value}
    return type(config)(**fields)


def _shrunk(config: Any, changes: dict[str, Any]) -> Any:
    fields = config.to_dict()
    depth = config.num_hidden_layers
    layered = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == depth}
    kept = _representatives(layered, depth)
    tiny: dict[str, Any] = {name: [value[i] for i in kept] for name, value in layered.items()}
    for name, value in fields.items():
        if name in SIZES and value:
            tiny[name] = [SIZES[name]] * (len(kept) if name in layered else len(value)) if isinstance(value, list) else SIZES[name]
    for name, other in SAME:
        if name in tiny and tiny.keys() >= {other} and fields[name] == fields[other]:
            tiny[name] = tiny[other]
    given = {"num_hidden_layers": len(kept)} | tiny | TOKENS | changes
    return type(config)(**given)


def _representatives(layered: dict[str, list[Any]], depth: int) -> list[int]:
    """The first layer of each kind, and the last ones up to `LAYERS`."""
    first: dict[str, int] = {}
    for layer in range(depth):
        first.setdefault(str([value[layer] for value in layered.values()]), layer)
    kept = sorted(first.values())
    return kept + [layer for layer in range(depth) if layer not in kept][-max(LAYERS - len(kept), 0) :][: max(LAYERS - len(kept), 0)]


def folders() -> list[str]:
    """transformers' models whose experts go through the interface that dali registers itself with."""
    models = Path(transformers.__file__).parent / "models"
    return sorted(
        {
            path.parent.name
            for path in models.glob("*/modeling_*.py")
            if "use_experts_implementation" in path.read_text(encoding="utf-8")
        }
    )


def variants(folder: str) -> list[Variant]:
    """What is swept of one of `folders`: each of its model types that can generate text, in each of its variants."""
    models = Path(transformers.__file__).parent / "models"
    found = []
    for path in sorted((models / folder).glob("configuration_*.py")):
        for model_type in re.findall(r'^\s+model_type = "([^"]+)"', path.read_text(encoding="utf-8"), re.M):
            if model_type in CONFIG_MAPPING and text_model(CONFIG_MAPPING[model_type]()) is not None:
                changes = {"": {}} | CHANGES.get(model_type, {})
                found += [Variant(folder, model_type, name, some) for name, some in changes.items()]
    return found
