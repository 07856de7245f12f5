"""From GGUF metadata to a transformers configuration, a table a family.

Widths and counts that tensors show are read off the tensors: older files lack some of the keys. What llama.cpp
builds into an architecture (normalised router weights, alternating windows) stands here too, as no key says it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.errors import DaliError, reason
from dali.loading.safetensors import quiet_transformers
from dali.store.gguf.header import Gguf, damaged

NUMBER = (int, float)
KEEP_NONE = {"q_lora_rank", "sliding_window", "bos_token_id", "eos_token_id", "pad_token_id"}  # None is meant
SOFTMAX = 1  # ggml's expert gating function
Fields = dict[str, Any]


@dataclass(frozen=True)
class Header:
    """A GGUF header, and the keys of its architecture."""

    gguf: Gguf
    architecture: str

    def key(self, name: str, default: Any = None, kind: type | tuple[type, ...] = int) -> Any:
        return self.gguf.get(f"{self.architecture}.{name}", kind, default)

    def required(self, name: str, kind: type | tuple[type, ...] = int) -> Any:
        return self.gguf.require(f"{self.architecture}.{name}", kind)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of the first tensor of that name (a pattern), in any block; None where there is none."""
        pattern = re.compile(rf"blk\.\d+\.{tensor}\.weight")
        return next((t.shape for name, t in self.gguf.tensors.items() if pattern.fullmatch(name)), None)

    def expert_width(self) -> int:
        """The intermediate size of the experts."""
        shape = self.shape(r"ffn_down(_exps|\.0)")
        if shape is None:
            raise damaged(self.gguf.path, "it lacks the tensors of experts")
        return shape[-1]

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors


def _rope(header: Header, **yarn: Any) -> Fields:
    """`rope_parameters`; `yarn`: what a family adds to YaRN's."""
    rope: Fields = {
        "rope_type": "default",
        "rope_theta": float(header.key("rope.freq_base", 10000.0, NUMBER)),
    }
    kind = header.key("rope.scaling.type", "none", str)
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": float(header.required("rope.scaling.factor", NUMBER))}
    elif kind not in ("none", "longrope"):
        raise damaged(header.gguf.path, f"its rope.scaling.type is {kind!r}, which dali does not know")
    if kind == "yarn":
        rope["original_max_position_embeddings"] = header.required("rope.scaling.original_context_length")
        for ours, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            value = header.key(f"rope.scaling.{key}", None, NUMBER)
            rope |= {} if value is None else {ours: float(value)}
        rope |= yarn
    return rope


def _qwen2(header: Header) -> Fields:
    return {
        "moe_intermediate_size": header.expert_width(),
        "shared_expert_intermediate_size": (header.shape("ffn_up_shexp") or (0,))[0],
        "qkv_bias": header.has("blk.0.attn_q.bias"),
    }


def _qwen3(header: Header) -> Fields:
    return {
        "moe_intermediate_size": header.expert_width(),
        "head_dim": header.required("attention.key_length"),
        "norm_topk_prob": True,
    }


def _mixtral(header: Header) -> Fields:
    rope = _rope(header)
    if header.has("rope_freqs.weight"):  # Llama 3.1's scaling, worked out for each frequency
        if rope["rope_type"] != "default":
            raise damaged(
                header.gguf.path, f"it has both rope_freqs.weight and a {rope['rope_type']} scaling"
            )
        factors = _rope_factors(header, "rope_freqs.weight")
        rope |= {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": header.required("context_length"),
        }
    return {
        "intermediate_size": header.expert_width(),
        "head_dim": header.key("attention.key_length") or header.required("rope.dimension_count"),
        "sliding_window": header.key("attention.sliding_window") or None,
        "rope_parameters": rope,
    }


def _deepseek2(header: Header) -> Fields:
    gating = header.key("expert_gating_func", SOFTMAX)
    if gating not in (0, SOFTMAX):
        raise DaliError(
            f"{header.gguf.path} routes as DeepSeek-V3 does (expert_gating_func {gating}), which dali cannot read as GGUF.",
            "Use its safetensors weights.",
        )
    for key, kind in (("expert_weights_norm", bool), ("attention.temperature_scale", NUMBER)):
        if value := header.key(key, None, kind):
            raise DaliError(
                f"{header.gguf.path} is no DeepSeek-V2: its key deepseek2.{key} is {value!r}.",
                "Use its safetensors weights.",
            )
    rank, rotary = header.required("attention.kv_lora_rank"), header.required("rope.dimension_count")
    # With MLA's split matrices key_length is that of the compressed keys.
    key_length = header.key("attention.key_length_mla") or header.required("attention.key_length")
    groups = header.key("expert_group_count", 1)
    scaled = header.key("rope.scaling.yarn_log_multiplier", 0.0, NUMBER) * 10
    return {
        "first_k_dense_replace": header.key("leading_dense_block_count", 0),
        "moe_intermediate_size": header.expert_width(),
        "n_shared_experts": header.required("expert_shared_count"),
        "num_key_value_heads": header.required("attention.head_count"),
        "q_lora_rank": header.key("attention.q_lora_rank") or None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": key_length - rotary,
        "v_head_dim": header.key("attention.value_length_mla") or header.required("attention.value_length"),
        "routed_scaling_factor": float(header.key("expert_weights_scale", 1.0, NUMBER)),
        "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
        "n_group": groups,
        "topk_group": header.key("expert_group_used_count", 1),
        "rope_parameters": _rope(header, mscale=scaled, mscale_all_dim=scaled),
    }


def _olmoe(header: Header) -> Fields:
    return {
        "intermediate_size": header.expert_width(),
        "clip_qkv": header.key("attention.clamp_kqv", None, NUMBER),
    }


def _phimoe(header: Header) -> Fields:
    rope = _rope(header)
    if header.has("rope_factors_long.weight"):
        # The file keeps one attention factor; the model's own long and short mscale are not in it.
        factor = float(header.key("rope.scaling.attn_factor", 1.0, NUMBER))
        rope |= {
            "rope_type": "longrope",
            "long_factor": _rope_factors(header, "rope_factors_long.weight"),
            "short_factor": _rope_factors(header, "rope_factors_short.weight"),
            "long_mscale": factor,
            "short_mscale": factor,
            "original_max_position_embeddings": header.required("rope.scaling.original_context_length"),
        }
    return {
        "intermediate_size": header.expert_width(),
        "sliding_window": header.key("attention.sliding_window") or None,
        "attention_bias": header.has("blk.0.attn_q.bias"),
        "lm_head_bias": header.has("output.bias"),
        "rope_parameters": rope,
    }


def _gpt_oss(header: Header) -> Fields:
    return {
        "intermediate_size": header.expert_width(),
        "head_dim": header.required("attention.key_length"),
        "sliding_window": header.required("attention.sliding_window"),
        "attention_bias": header.has("blk.0.attn_q.bias"),
        "rope_parameters": _rope(header, truncate=False),
    }


@dataclass(frozen=True)
class Family:
    """One architecture: transformers' model type, the field that counts experts, and what is its own."""

    model_type: str
    experts: str
    own: Callable[[Header], Fields]
    permuted: bool = False  # query and key rows lie in llama's pairwise rotary order
    strips_after_tokens: bool = False  # white space after a control token is dropped


FAMILIES = {  # by general.architecture
    "qwen3moe": Family("qwen3_moe", "num_experts", _qwen3),
    "qwen2moe": Family("qwen2_moe", "num_experts", _qwen2),
    "llama": Family("mixtral", "num_local_experts", _mixtral, permuted=True),
    "deepseek2": Family("deepseek_v2", "n_routed_experts", _deepseek2),
    "olmoe": Family("olmoe", "num_experts", _olmoe),
    "phimoe": Family("phimoe", "num_local_experts", _phimoe, strips_after_tokens=True),
    "gpt-oss": Family("gpt_oss", "num_local_experts", _gpt_oss),
}


def family_of(gguf: Gguf) -> Family:
    """The family of a file. DaliError for an architecture dali cannot read, or a dense model."""
    architecture = gguf.require("general.architecture", str)
    if architecture not in FAMILIES:
        raise DaliError(
            f"{gguf.path} is a {architecture!r:.60} model, which dali cannot read as GGUF.",
            f"Known architectures: {', '.join(FAMILIES)}. Others may run from safetensors weights.",
        )
    if not gguf.get(f"{architecture}.expert_count", int, 0):
        raise DaliError(
            f"{gguf.path} is not a Mixture-of-Experts model: its {architecture} metadata counts no experts.",
            "dali is for MoE models; run dense ones with llama.cpp.",
        )
    return FAMILIES[architecture]


def read_config(gguf: Gguf, eos_ids: list[int]) -> Any:
    """The transformers configuration of a file. DaliError, naming the key, for what is missing or impossible."""
    family = family_of(gguf)
    header = Header(gguf, gguf.metadata["general.architecture"])
    layers = header.required("block_count")
    blocks = {int(name.split(".")[1]) for name in gguf.tensors if re.match(r"blk\.\d+\.", name)}
    if len(blocks) != layers or max(blocks) != layers - 1:
        raise damaged(gguf.path, f"its block_count is {layers}, and it has tensors of {len(blocks)} blocks")
    if not header.has("token_embd.weight"):
        raise damaged(gguf.path, "it lacks the tensor token_embd.weight")
    fields: Fields = {
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": header.required("embedding_length"),
        "intermediate_size": header.key("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": header.required("attention.head_count"),
        "num_key_value_heads": header.key("attention.head_count_kv", header.required("attention.head_count")),
        "max_position_embeddings": header.required("context_length"),
        "rms_norm_eps": float(header.required("attention.layer_norm_rms_epsilon", NUMBER)),
        "num_experts_per_tok": header.required("expert_used_count"),
        family.experts: header.required("expert_count"),
        "tie_word_embeddings": not header.has("output.weight"),
        "rope_parameters": _rope(header),
        "bos_token_id": gguf.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": eos_ids or None,
        "pad_token_id": gguf.get("tokenizer.ggml.padding_token_id", int),
    } | family.own(header)
    if not 0 < fields["num_experts_per_tok"] <= fields[family.experts]:
        used, count = fields["num_experts_per_tok"], fields[family.experts]
        raise damaged(gguf.path, f"its expert_used_count is {used}, of {count} experts")
    given = {name: value for name, value in fields.items() if value is not None or name in KEEP_NONE}
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[family.model_type](**given)
    except Exception as error:  # transformers stumbles over a wrong value wherever it first uses it
        raise damaged(
            gguf.path, f"its metadata makes no {family.model_type} model ({reason(error)})"
        ) from error


def _rope_factors(header: Header, name: str) -> list[float]:
    """What each frequency is divided by: a small F32 tensor."""
    tensor = header.gguf.tensors.get(name)
    if tensor is None or len(tensor.shape) != 1 or tensor.type.name != "F32":
        raise damaged(header.gguf.path, f"it lacks the tensor {name}, a row of F32")
    count = header.required("rope.dimension_count") // 2
    if tensor.shape[0] != count:
        raise damaged(tensor.path, f"the tensor {name} has {tensor.shape[0]} values, for {count} frequencies")
    factors = np.fromfile(tensor.path, "<f4", count, offset=tensor.offset)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise damaged(tensor.path, f"the tensor {name} has values that are not positive")
    return [float(factor) for factor in factors]
