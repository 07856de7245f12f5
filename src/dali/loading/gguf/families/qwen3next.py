"""Qwen3-Next: three layers of gated delta rule to one of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Made, Part, Shape, less_one, log_of_negative

if TYPE_CHECKING:
    from torch import Tensor


def delta(keys: Keys) -> Fields:
    """What Qwen's layers of gated delta rule are configured by, and which they are."""
    mamba, head = keys.mamba(), keys.required("attention.key_length")
    return {
        "head_dim": head,
        "moe_intermediate_size": keys.expert_width(),
        "shared_expert_intermediate_size": (keys.shape("ffn_up_shexp") or (0,))[0],
        "linear_conv_kernel_dim": mamba.taps,
        "linear_key_head_dim": mamba.state,
        "linear_value_head_dim": mamba.width,
        "linear_num_key_heads": mamba.groups,
        "linear_num_value_heads": mamba.heads,
        "layer_types": keys.recurrent(4),
        "attention_bias": keys.shape("attn_q", "bias") is not None,
        "rope_parameters": keys.rope() | {"partial_rotary_factor": keys.rotary(head)},
    }


def _fields(keys: Keys) -> Fields:
    return delta(keys) | {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}


def _together(config: Any, qkv: Tensor, z: Tensor) -> Tensor:
    """All queries, keys and values, and all gates -> those of one key head after the other."""
    import torch

    heads, width = config.linear_num_key_heads, config.linear_key_head_dim * config.linear_num_key_heads
    parts = [*torch.split(qkv, [width, width, qkv.shape[0] - 2 * width]), z]
    return torch.cat([part.view(heads, -1, part.shape[-1]) for part in parts], dim=1)


def _apart(config: Any, shape: Shape) -> list[Shape]:
    gates = config.linear_num_value_heads * config.linear_value_head_dim
    return [(shape[0] - gates, shape[1]), (gates, shape[1])]


NORMS: dict[str, Part] = {
    "input_layernorm.weight": less_one("attn_norm.weight"),
    "post_attention_layernorm.weight": less_one("post_attention_norm.weight"),
    "self_attn.q_norm.weight": less_one("attn_q_norm.weight"),
    "self_attn.k_norm.weight": less_one("attn_k_norm.weight"),
    "norm.weight": less_one("output_norm.weight"),
}
BLOCKS = {
    "post_attention_norm": "post_attention_layernorm",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **shared_experts("mlp.shared_expert"),
}
FAMILY = Family(
    "qwen3next",
    "qwen3_next",
    "num_experts",
    _fields,
    blocks=BLOCKS | {"ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba"},
    made=NORMS
    | {
        "linear_attn.A_log": log_of_negative("ssm_a"),
        "linear_attn.in_proj_qkvz.weight": Made(("attn_qkv.weight", "attn_gate.weight"), _together, _apart),
    },
)
