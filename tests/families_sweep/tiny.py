"""Tiny configurations of every MoE family, derived from its own configuration class: sizes shrunk by the names of their fields,
and one layer of each kind that its default depth has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.loading.skeleton import keep_decoder, text_model
from families import randomize

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
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "sliding_window": 7,
    "sliding_window_size": 7,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 8,
    "index_kpool": 4,
    "index_block_size": 4,
    "index_topk_blocks": 3,
    "linear_num_heads": 16,
    "linear_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 16,
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
    "ngram_vocab_size_base": 50,
    "ple_embed_dim": 64,
    "heads_per_ngram": 2,
    "split_ngram_parts": 2,
}
SAME = (  # fields that stay equal where the family has them so
    ("num_key_value_heads", "num_attention_heads"),
    ("head_dim", "qk_rope_head_dim"),
    ("head_dim", "qk_head_dim"),
)
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROUTED = {"num_experts": 8, "moe_intermediate_size": 40}
DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2}
GEMMA = ROUTED | {"enable_moe_block": True, "top_k_experts": 3}
QUERY_SPARSE = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}  # prompts cross that
LINEAR_AND_FULL = ["linear_attention", "full_attention", "linear_attention"]
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
# What sizes alone do not say, a family's model type -> a variant's name -> its changes. The name "" is the family as it comes.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "deepseek_ocr2_text": {"": DEEPSEEK | {"mlp_layer_types": ["dense", "sparse", "sparse"]}},
    "deepseek_v2": {"": DEEPSEEK | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}},
    "diffusion_gemma_text": {"": GEMMA},
    "dots1": {"": DEEPSEEK, "windows": {"sliding_window": 7, "layer_types": WINDOWS}},
    "ernie4_5_vl_moe_text": {
        "": {"moe_intermediate_size": [40, 24], "rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}}
    },
    "gemma4_text": {
        "": GEMMA,
        # As the one with experts is published; and what the smaller ones without have, with experts.
        "values are keys": GEMMA
        | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "global_head_dim": 32,
            "final_logit_softcapping": 3.0,
            "use_bidirectional_attention": "vision",
            "hidden_size_per_layer_input": 0,
        },
        "layers share keys and values": GEMMA
        | {
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 3,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
            "use_double_wide_mlp": True,
        },
        "attending to later tokens": {"use_bidirectional_attention": "all"},
    },
    "glm4v_moe_text": {
        "": {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}
    },
    "granitemoehybrid": {
        "": {"layer_types": LINEAR_AND_FULL},
        "attention alone": {"layer_types": ["full_attention"] * 3},
    },
    "hunyuan_v1_moe": {"": {"head_dim": 16, "num_experts": 8, "moe_topk": 3}},
    "hy_v4_vl_text": {"": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}}},
    "inkling2_loop_text": {
        "": {"loop_layer_index_start": 1, "loop_layer_index_end": 2, "n_layers_per_attn_res_block": 1}
    },
    "jamba": {"": {"attn_layer_period": 2, "attn_layer_offset": 1}},
    "laguna": {"windows": {"sliding_window": 7, "layer_types": WINDOWS}},
    "lfm2_moe": {"": {"layer_types": ["conv", "full_attention", "conv"]}},
    "mellum": {"windows": {"sliding_window": 7, "layer_types": WINDOWS}},
    "mistral_large4_text": {"": {"num_hidden_layers": 3, "kv_source_layers": [0, 1, 1]}},
    "mixtral": {"windows": {"sliding_window": 7}},
    "nemotron_h": {
        "attention alone": {"layers_block_type": ["full_attention", "moe", "mlp"]},
        "experts in a latent space": {"moe_latent_size": 32},
    },
    "phimoe": {"windows": {"sliding_window": 7}},
    "qwen2_moe": {"windows": {"sliding_window": 7, "use_sliding_window": True, "layer_types": WINDOWS}},
    "qwen3_moe": {
        "windows": {"sliding_window": 7, "use_sliding_window": True},
        "YaRN": {"rope_parameters": SCALED | {"rope_type": "yarn"}},
        "Llama 3's frequencies": {
            "rope_parameters": SCALED
            | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        },
        "odd sizes": {
            "hidden_size": 72,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 20,
            "moe_intermediate_size": 25,
            "num_experts": 7,
        },
    },
    "qwen4_exp_text": {"": QUERY_SPARSE},
    "zaya": {"": {"num_experts_per_tok": 1}},
}
# What goes with the text's sizes in a model's other parts.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "dots3_note": {"vision_config": {"adapter_out_dim": 64}, "audio_config": {"adapter_out_dim": 64}},
    "inkling2": {"vision_config": {"text_hidden_size": 64}},
    "inkling2_loop": {"vision_config": {"text_hidden_size": 64}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64}},
}
# Models for images and text that are published around a family: its model type -> theirs.
AROUND = {
    "deepseek_v3": "kimi_k25",
    "mistral4": "mistral3",
    "qwen3_moe": "internvl",
}


@dataclass(frozen=True)
class Variant:
    """One tiny model: a family's model type, what it differs in from the family as it comes, and changes of its configuration."""

    folder: str
    model_type: str
    name: str = ""
    changes: dict[str, Any] = field(default_factory=dict, compare=False)
    text: str | None = None  # the model type of its text part, where the family's default is another

    def __str__(self) -> str:
        return f"{self.model_type} ({self.name})" if self.name else self.model_type

    @property
    def config(self) -> Any:
        """The tiny configuration."""
        published = CONFIG_MAPPING[self.model_type]()
        text = published.get_text_config() if self.text is None else CONFIG_MAPPING[self.text]()
        if text is published:
            return _shrunk(text, CHANGES.get(text.model_type, {}).get("", {}) | self.changes)
        changes = CHANGES.get(text.model_type, {}).get("", {}) | self.changes
        parts = {
            name: type(getattr(published, name))(**some)
            for name, some in PARTS.get(self.model_type, {}).items()
        }
        return type(published)(text_config=_shrunk(text, changes), **parts)


def _shrunk(config: Any, changes: dict[str, Any]) -> Any:
    fields = config.to_dict()
    depth = config.num_hidden_layers
    layered = {
        name: value for name, value in fields.items() if isinstance(value, list) and len(value) == depth
    }
    kept = _representatives(layered, depth)[: changes.get("num_hidden_layers")]
    tiny: dict[str, Any] = {name: [value[i] for i in kept] for name, value in layered.items()}
    for name, value in fields.items():
        if name in SIZES and value:
            tiny[name] = (
                [SIZES[name]] * (len(kept) if name in layered else len(value))
                if isinstance(value, list)
                else SIZES[name]
            )
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
    return (
        kept
        + [layer for layer in range(depth) if layer not in kept][-max(LAYERS - len(kept), 0) :][
            : max(LAYERS - len(kept), 0)
        ]
    )


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
    if folder in AROUND:
        found.append(Variant(folder, AROUND[folder], f"its text part {folder}", text=folder))
    return found


def random_model(variant: Variant, seed: int = 0) -> Any:
    """transformers' model of a variant with random weights, biases and norms, without what text does not pass through."""
    found = text_model(variant.config)
    assert found is not None
    cls, config = found
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = cls(config)
    keep_decoder(model)
    model.to_empty(device="cpu").float()
    for buffer in model.buffers():
        buffer.zero_()
    model.init_weights()
    randomize(model)
    return model.eval()
