"""Tiny models of the families that GGUF files hold, with few values to a weight: what llama.cpp's converter makes of them fits
in a repository, and shows any row that is misplaced."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.hooks import seam
from dali.loading.gguf.model import GgufModel
from dali.loading.skeleton import keep_text, text_model
from dali.store.experts_module import ExpertsModule

LAYERS = 3
COMMON = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 28,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MOE = {"moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}
GROUPED = {
    "moe_intermediate_size": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
LATENT = {
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}
LOCAL = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 12}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = {"sliding_window": 5, "layer_types": MIXED}
DELTA = {  # two value heads to a key head
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 20,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
MAMBA = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}
GRANITE = LOCAL | {
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "residual_multiplier": 0.25,
    "attention_multiplier": 0.125,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
PARTIAL = {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [4.0, 5.0, 6.0, 7.0],
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_mscale": 1.2247449159622192,  # as the converter works it out, in float32
    "short_mscale": 1.2247449159622192,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

TINY: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model type, fields
    "afmoe": (
        "afmoe",
        MOE
        | {
            "sliding_window": 5,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "num_hidden_layers": 4,
        }
        | {"num_shared_experts": 2, "num_dense_layers": 1, "route_scale": 1.5, "mup_enabled": True},
    ),
    "cohere2moe": (
        "cohere2_moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "head_dim": 8, "intermediate_size": 12}
        | WINDOWS
        | {"num_shared_experts": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]}
        | {
            "prefix_dense_intermediate_size": 28,
            "expert_selection_fn": "sigmoid",
            "tie_word_embeddings": True,
        },
    ),
    "deepseek2": (
        "deepseek_v2",
        GROUPED | LATENT | {"topk_method": "group_limited_greedy", "norm_topk_prob": False},
    ),
    "deepseek2-v3": (
        "deepseek_v3",
        GROUPED | LATENT | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek2-glm": (
        "glm4_moe_lite",
        GROUPED | LATENT | {"n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "dots1": ("dots1", GROUPED | {"n_group": 1, "topk_group": 1, "head_dim": 8, "num_key_value_heads": 4}),
    "ernie4_5-moe": (
        "ernie4_5_moe",
        {"moe_intermediate_size": 12, "moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 2}
        | {"moe_layer_start_index": 1, "tie_word_embeddings": True, "intermediate_size": 48},
    ),
    "exaone-moe": (
        "exaone_moe",
        MOE | WINDOWS | {"n_group": 3, "topk_group": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "gemma4": (
        "gemma4_text",
        MOE
        | {"num_experts_per_tok": None, "top_k_experts": 2, "enable_moe_block": True, "sliding_window": 5}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "global_head_dim": 16}
        | {"num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0}
        | {"final_logit_softcapping": 30.0, "tie_word_embeddings": True},
    ),
    "gemma4-per-layer": (
        "gemma4_text",
        MOE
        | {"num_experts_per_tok": None, "top_k_experts": 2, "enable_moe_block": True, "sliding_window": 5}
        | {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 16}
        | {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 48, "tie_word_embeddings": True},
    ),
    "glm4moe": (
        "glm4_moe",
        GROUPED
        | PARTIAL
        | {"use_qk_norm": True, "head_dim": 8, "attention_bias": True, "n_group": 1, "topk_group": 1},
    ),
    "gpt-oss": ("gpt_oss", LOCAL | WINDOWS | {"head_dim": 8, "rope_parameters": YARN | {"truncate": False}}),
    "granitemoe": ("granitemoe", GRANITE),
    "granitemoe-shared": ("granitemoeshared", GRANITE | {"shared_intermediate_size": 20}),
    "granite_swa": ("granitemoe_swa", GRANITE | WINDOWS),
    "granitehybrid": ("granitemoehybrid", GRANITE | MAMBA | {"shared_intermediate_size": 20}),
    "hunyuan-moe": (
        "hunyuan_v1_moe",
        {"num_experts": 6, "moe_topk": 2, "head_dim": 8, "intermediate_size": 12},
    ),
    "hy_v3": ("hy_v3", MOE | {"num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse", "sparse"]}),
    "laguna": (
        "laguna",
        MOE
        | {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
        | {"shared_expert_intermediate_size": 20, "num_attention_heads_per_layer": [4, 6, 6]}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "moe_routed_scaling_factor": 2.5},
    ),
    "lfm2moe": (
        "lfm2_moe",
        MOE
        | {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "conv_L_cache": 3}
        | {"tie_word_embeddings": True},
    ),
    "llama": ("mixtral", LOCAL),
    "mellum": ("mellum", MOE | WINDOWS),
    "mimo2": (
        "mimo_v2_flash",
        GROUPED
        | WINDOWS
        | {"head_dim": 24, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "minimax-m2": ("minimax_m2", LOCAL | PARTIAL | {"head_dim": 8}),
    "mistral4": (
        "mistral3/mistral4",
        GROUPED | LATENT | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
    ),
    "nemotron_h_moe": (
        "nemotron_h",
        GROUPED
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "num_hidden_layers": None,
        }
        | {"ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8}
        | {"moe_shared_expert_intermediate_size": 20, "n_shared_experts": 1, "head_dim": 8}
        | {"n_group": 1, "topk_group": 1},
    ),
    "olmoe": (
        "olmoe",
        {"num_key_value_heads": 4} | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 12},
    ),
    "phimoe": (
        "phimoe",
        LOCAL
        | {"attention_bias": True, "lm_head_bias": True, "sliding_window": 5}
        | {"original_max_position_embeddings": 16, "rope_parameters": LONG},
    ),
    "qwen2moe": (
        "qwen2_moe",
        {"moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 2}
        | {"shared_expert_intermediate_size": 20},
    ),
    "qwen3moe": ("qwen3_moe", MOE | {"norm_topk_prob": True}),
    "qwen3next": ("qwen3_next", MOE | DELTA),
    "qwen3vlmoe": (
        "qwen3_vl_moe/qwen3_vl_moe_text",
        MOE | {"rope_parameters": PLAIN | {"mrope_section": [2, 1, 1]}},
    ),
    "qwen4exp": (
        "qwen4_exp_text",
        MOE
        | DELTA
        | {"layer_types": ["linear_attention", "linear_attention", "indexed_attention", "linear_attention"]}
        | {"hc_count": 2, "hc_lowrank": 6, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
        | {"indexer_budget": 8, "indexer_compress_ratio": 2, "ple_layer_ids": []}
        | {"rope_parameters": PARTIAL["rope_parameters"] | {"mrope_section": [1, 1, 0]}},
    ),
    "qwen35moe": (
        "qwen3_5_moe_text",
        # Heads as wide as a block of Q8_0, which quantized ones are put in order by.
        MOE
        | DELTA
        | {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
        | {"rope_parameters": PARTIAL["rope_parameters"] | {"mrope_section": [1, 1, 0]}},
    ),
}


class Unstepped(GgufModel):
    """A file whose experts are found without asking whether the engine can step its layers."""

    @property
    def modules(self) -> list[ExpertsModule]:
        return seam.describe_model(self.skeleton, str(self.path))


def tiny_model(name: str) -> Any:
    """transformers' model of `TINY[name]`, its weights told by their names."""
    model_type, changes = TINY[name]
    fields = {field: value for field, value in (COMMON | changes).items() if value is not None}
    around, _, text = model_type.partition("/")
    given = {"text_config": fields | {"model_type": text}} if text else fields
    return model_of(CONFIG_MAPPING[around](**given))


def model_of(config: Any) -> Any:
    """transformers' model by `config`, filled, without what text does not pass through."""
    found = text_model(config)
    assert found is not None
    cls, config = found
    config._attn_implementation = config._experts_implementation = "eager"
    with torch.device("meta"):
        model = cls(config)
    keep_text(model)
    model.to_empty(device="cpu").float()
    model.init_weights()
    fill(model)
    return model.eval()


@torch.no_grad()
def fill(model: Any) -> None:
    """Give each parameter values of its own, out of four that stand for its kind."""
    for name, value in sorted(model.state_dict().items()):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        levels = torch.randint(0, 4, value.shape, generator=generator).float()
        if "norm" in name or name.endswith((".D", "scale", "scalar")):
            value.copy_(0.5 + levels * 0.25)
        elif name.endswith("A_log"):
            value.copy_(levels * 0.5 - 0.5)
        elif value.ndim == 1 or "correction" in name:
            value.copy_(levels * 0.125 - 0.25)
        elif ".gate." in name or "router" in name:
            value.copy_(levels * 0.5 - 0.75)
        else:
            value.copy_(levels * 0.25 - 0.375)
