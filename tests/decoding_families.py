"""Tiny models of families that decode in one native call, beside those of families.py that do: each brings a part that others
lack."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import random_model

# Granite's routers and the models of Qwen3.5 and with Mamba2 are written otherwise there.
OLDER = Version(transformers.__version__) < Version("5.24")
OTHERWISE = {"granitemoe", "granitemoeshared", "granitemoehybrid", "qwen3_5_moe_text", "nemotron_h"}
WRITTEN_OTHERWISE = OTHERWISE if OLDER else set()

MOE = {"moe_intermediate_size": 48, "intermediate_size": 96, "num_experts_per_tok": 3}
MANY = MOE | {"num_experts": 8}
# A dense first layer, a shared expert, sigmoid scores with a correction, the best groups of experts.
GROUPED = MOE | {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
WINDOWS = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
GRANITE = {
    "intermediate_size": 48,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}

LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
# Delta nets beside gated attention, norms that count from one.
DELTA_NET = (
    MANY
    | PARTIAL
    | {
        "shared_expert_intermediate_size": 64,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 24,
        "linear_value_head_dim": 16,
    }
)

# Experts beside a dense network, each with norms; values that are keys before their norm, where all tokens are seen; soft caps.
GEMMA = {
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "top_k_experts": 3,
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "final_logit_softcapping": 3.0,
}

CHANGES: dict[str, dict[str, Any]] = {
    "gemma4_text": GEMMA,
    "dots1": GROUPED,
    "glm4_moe": GROUPED | PARTIAL | {"use_qk_norm": True, "head_dim": 32, "attention_bias": True},
    "solar_open": {k: v for k, v in GROUPED.items() if k != "first_k_dense_replace"} | {"head_dim": 16},
    "exaone_moe": MANY | WINDOWS | {"n_group": 2, "topk_group": 1},  # rotates in windows only
    "ernie4_5_moe": MOE | {"moe_num_experts": 8, "moe_k": 3},  # neighbours turn, in float32
    "flex_olmo": {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3},  # norms follow
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE | {"shared_intermediate_size": 64},  # gate and up in one
    "hunyuan_v1_moe": {"intermediate_size": 48, "num_experts": 8, "moe_topk": 3, "head_dim": 16},
    "hy_v3": MANY | {"head_dim": 16},  # the block hands the correction to the router
    "mellum": MANY | WINDOWS | {"head_dim": 16, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "mimo_v2_flash": MOE  # values narrower than keys, sinks, rotations of two kinds
    | WINDOWS
    | {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "head_dim": 24, "v_head_dim": 16}
    | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "minimax_m2": PARTIAL
    | {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16},
    "deepseek_v2": {"qk_rope_head_dim": 32},  # by complex numbers; groups judged by their best expert
    "deepseek_v3": GROUPED | LATENT | {"q_lora_rank": 24},
    "glm4_moe_lite": GROUPED | LATENT,
    "kolibri1": MANY  # norms on both sides, experts chosen by their logits
    | WINDOWS
    | {"shared_expert_intermediate_size": 64, "head_dim": 16},
    "lfm2_moe": MANY  # short convolutions, parts by other names
    | {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "use_expert_bias": True},
    "qwen3_next": DELTA_NET,  # projections of all heads' parts together
    "qwen3_5_moe_text": DELTA_NET | {"linear_value_head_dim": 32},  # and apart
    "nemotron_h": {  # layers of a mixer alone or without one, no rotation, networks without a gate
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention", "mlp"],
        "num_hidden_layers": 6,
        "head_dim": 16,
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "moe_shared_expert_intermediate_size": 48,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "time_step_min": 1e-9,  # below any: transformers forgets it when it decodes
        "mamba_num_heads": 6,
        "mamba_head_dim": 20,
        "ssm_state_size": 18,
        "n_groups": 3,
        "chunk_size": 8,
    },
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": 40,
        "shared_intermediate_size": 48,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.25,
    },
    "flint": MANY | WINDOWS | {"shared_expert_intermediate_size": 64, "head_dim": 16},
}
DECODING = {
    family: changes
    for family, changes in CHANGES.items()
    if family in CONFIG_MAPPING and family not in WRITTEN_OTHERWISE
}


def decoding_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A transformers model of `family` with random weights, biases, corrections and sinks."""
    model = random_model(family, dtype=dtype, **(CHANGES[family] | changes))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "correction_bias" in name or "expert_bias" in name:
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith("layer_scalar"):
                tensor.uniform_(0.5, 1.5)
            elif "sinks" in name:
                tensor.normal_(0, 1)
            elif name.endswith("bias"):
                tensor.uniform_(-0.5, 0.5)
    return model
