"""Nemotron-3's MoE models: a layer is Mamba-2, attention, or experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Made, log_of_negative, pairwise
from dali.store.gguf.header import damaged

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {  # what is in a block -> what the layer is
    "ssm_in": "linear_attention",
    "attn_q": "full_attention",
    "ffn_gate_inp": "moe",
    "ffn_up": "mlp",
}


def _kind(keys: Keys, layer: int) -> str:
    for tensor, kind in KINDS.items():
        if keys.has(f"blk.{layer}.{tensor}.weight"):
            return kind
    raise damaged(keys.gguf.path, f"its block {layer} has none of {', '.join(KINDS)}")


def _fields(keys: Keys) -> Fields:
    mamba = keys.mamba()
    return {
        "num_hidden_layers": None,
        "layers_block_type": [_kind(keys, layer) for layer in range(keys.layers)],
        "num_key_value_heads": keys.largest("attention.head_count_kv") or None,
        "rms_norm_eps": None,
        "layer_norm_epsilon": keys.epsilon,
        "rope_parameters": None,
        "head_dim": keys.required("attention.key_length"),
        "intermediate_size": (keys.shape("ffn_up") or (0,))[0] or None,
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.width,
        "n_groups": mamba.groups,
        "ssm_state_size": mamba.state,
        "conv_kernel": mamba.taps,
        "use_conv_bias": keys.shape("ssm_conv1d", "bias") is not None,
        "use_bias": keys.shape("ssm_in", "bias") is not None,
        "attention_bias": keys.shape("attn_q", "bias") is not None,
        "mlp_bias": keys.shape("ffn_up", "bias") is not None,
        "moe_intermediate_size": keys.expert_width(),
        "moe_shared_expert_intermediate_size": (keys.shape("ffn_up_shexp") or (0,))[0],
        "moe_latent_size": keys.key("moe_latent_size") or None,
        "n_shared_experts": keys.key("expert_shared_count", 1),
        **keys.grouped_routing(),
        "norm_topk_prob": keys.key("expert_weights_norm", True, bool),
    }


def _by_group(config: Any, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(config.n_groups, shape[0] // config.n_groups)]


def _as_it_is(config: Any, value: Tensor) -> Tensor:
    return value


FAMILY = Family(
    "nemotron_h_moe",
    "nemotron_h",
    "n_routed_experts",
    _fields,
    blocks={
        "attn_norm": "norm",
        "attn_q": "mixer.q_proj",
        "attn_k": "mixer.k_proj",
        "attn_v": "mixer.v_proj",
        "attn_output": "mixer.o_proj",
        "ssm_in": "mixer.in_proj",
        "ssm_conv1d": "mixer.conv1d",
        "ssm_dt.bias": "mixer.dt_bias",
        "ssm_d": "mixer.D",
        "ssm_out": "mixer.out_proj",
        "ffn_gate_inp": "mixer.gate",
        "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        "ffn_up_shexp": "mixer.shared_experts.up_proj",
        "ffn_down_shexp": "mixer.shared_experts.down_proj",
        "ffn_latent_down": "mixer.fc1_latent_proj",
        "ffn_latent_up": "mixer.fc2_latent_proj",
    },
    top={"token_embd": "embeddings", "output_norm": "norm_f"},
    made={
        "mixer.q_proj.weight": pairwise("num_attention_heads"),
        "mixer.k_proj.weight": pairwise("num_key_value_heads"),
        "mixer.A_log": log_of_negative("ssm_a"),
        "mixer.norm.weight": Made(("ssm_norm.weight",), _as_it_is, _by_group),
    },
)
