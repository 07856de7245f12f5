"""DeepSeek-V2 and its Lite; DeepSeek-V3, Kimi-K2 and GLM-4.7-Flash, which share the name, and route by sigmoids."""

from __future__ import annotations

from dataclasses import replace

from dali.errors import DaliError
from dali.loading.gguf.families import Family, shared_experts
from dali.loading.gguf.keys import NUMBER, SIGMOID, SOFTMAX, Fields, Keys
from dali.loading.gguf.parts import SPLIT_KV


def latent(keys: Keys) -> Fields:
    """What attention by latents is configured by, and DeepSeek's routing to groups of experts."""
    rank, rotary = keys.required("attention.kv_lora_rank"), keys.required("rope.dimension_count")
    # With MLA's split matrices key_length is that of the compressed keys.
    key_length = keys.key("attention.key_length_mla") or keys.required("attention.key_length")
    scaled = keys.key("rope.scaling.yarn_log_multiplier", 0.0, NUMBER) * 10
    return {
        "first_k_dense_replace": keys.key("leading_dense_block_count", 0),
        "moe_intermediate_size": keys.expert_width(),
        "n_shared_experts": keys.required("expert_shared_count"),
        "num_key_value_heads": keys.required("attention.head_count"),
        "q_lora_rank": keys.key("attention.q_lora_rank") or None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": key_length - rotary,
        "v_head_dim": keys.key("attention.value_length_mla") or keys.required("attention.value_length"),
        **keys.grouped_routing(),
        "rope_parameters": keys.rope(mscale=scaled, mscale_all_dim=scaled),
    }


def _v2(keys: Keys) -> Fields:
    for key, kind in (("expert_weights_norm", bool), ("attention.temperature_scale", NUMBER)):
        if value := keys.key(key, None, kind):
            raise DaliError(
                f"{keys.gguf.path} is no DeepSeek-V2: its key deepseek2.{key} is {value!r}.",
                "Use its safetensors weights.",
            )
    groups = keys.key("expert_group_count", 1)
    return latent(keys) | {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _v3(keys: Keys) -> Fields:
    return latent(keys) | {"norm_topk_prob": keys.key("expert_weights_norm", True, bool)}


def _form(keys: Keys) -> Family:
    """DeepSeek-V3's routers have corrections; its first files do not name their gating function."""
    gating = keys.key("expert_gating_func", 0)
    if gating not in (0, SOFTMAX, SIGMOID):
        raise DaliError(
            f"{keys.gguf.path} routes in a way that dali does not know (expert_gating_func {gating}).",
            "Use its safetensors weights.",
        )
    corrected = keys.shape("exp_probs_b", "bias") is not None
    return V3 if gating == SIGMOID or corrected else FAMILY


LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    **shared_experts(),
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}
SPLIT = {"self_attn.kv_b_proj.weight": SPLIT_KV}
FAMILY = Family("deepseek2", "deepseek_v2", "n_routed_experts", _v2, blocks=LATENT, made=SPLIT, form=_form)
V3 = replace(FAMILY, model_type="deepseek_v3", fields=_v3)
