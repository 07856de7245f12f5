"""Writes a transformers MoE model as GGUF, as llama.cpp's converter lays it out: for comparisons on the same file, and tests.

    python benchmarks/tools/export_gguf.py MODEL_DIRECTORY TYPE OUT.gguf        (TYPE: F32, F16, BF16, Q8_0, Q4_0, ...)

Matrices are written in TYPE, where 32 divides their rows; rows of norms, biases and routers in F32, as there. The gguf
package names the tensors and quantizes; nothing of dali's reader is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import gguf
    from gguf import GGMLQuantizationType as Type
except ModuleNotFoundError:
    raise SystemExit("This needs the gguf package.\nInstall it: pip install gguf.") from None

ARCHITECTURES = {
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "phimoe": gguf.MODEL_ARCH.PHIMOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
}
Encode = Callable[[str, np.ndarray], tuple[np.ndarray, Type]]


def encode_as(kind: Type) -> Encode:
    """Matrices in `kind` where its blocks divide their rows, all else in F32."""

    def encode(name: str, values: np.ndarray) -> tuple[np.ndarray, Type]:
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        plain = (
            values.ndim == 1 or values.shape[-1] % block or "ffn_gate_inp" in name or name.endswith(".bias")
        )
        chosen = Type.F32 if plain else kind
        return gguf.quants.quantize(values, chosen), chosen

    return encode


def write_gguf(
    model: Any, tokenizer: Any, path: Path, encode: Encode, *, split_kv: bool = False, shards: int = 0
) -> Path:
    """Write `model` to `path`. split_kv: DeepSeek's kv_b as two tensors. shards: tensors a file, 0 for one file."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=shards, small_first_shard=False
    )
    write_metadata(writer, config)
    write_tokenizer(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, values in tensors(model, names, split_kv):
        data, kind = encode(name, values)
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: Any, names: Any, split_kv: bool) -> Any:
    """(GGUF name, float32 values) of all tensors."""
    config = model.config
    for parameter, value in model.state_dict().items():
        if parameter == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.detach().to(torch.float32).numpy()
        if ".experts." in parameter:
            yield from experts(parameter, array, config.model_type == "gpt_oss")
            continue
        stem, _, suffix = parameter.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, suffix = parameter, "weight"  # sinks
        name = names.get_name(stem)
        assert name is not None, parameter
        if config.model_type == "mixtral" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        if split_kv and stem.endswith("kv_b_proj"):
            both = array.reshape(config.num_attention_heads, -1, array.shape[-1])
            keys = config.qk_nope_head_dim
            yield name.replace("attn_kv_b", "attn_k_b") + ".weight", both[:, :keys].swapaxes(1, 2)
            yield name.replace("attn_kv_b", "attn_v_b") + ".weight", both[:, keys:]
            continue
        yield f"{name}.{suffix}", array[0] if stem.endswith("shared_expert_gate") else array


def experts(parameter: str, array: np.ndarray, interleaved: bool) -> Any:
    """A layer's fused experts as GGUF has them: gate, up and down [experts, rows, columns], biases [experts, rows]."""
    layer, suffix = parameter.split(".")[2], "bias" if parameter.endswith("_bias") else "weight"
    if interleaved and suffix == "weight":
        array = array.swapaxes(1, 2)
    if "down_proj" in parameter:
        parts = {"down": array}
    elif interleaved:
        parts = {"gate": array[:, 0::2], "up": array[:, 1::2]}
    else:
        half = array.shape[1] // 2
        parts = {"gate": array[:, :half], "up": array[:, half:]}
    for name, part in parts.items():
        yield f"blk.{layer}.ffn_{name}_exps.{suffix}", part


def write_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    kind, rope = config.model_type, config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1 if kind == "deepseek_v2" else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)
    if kind == "deepseek_v2":
        rank, rotary = config.kv_lora_rank, config.qk_rope_head_dim
        writer.add_kv_lora_rank(rank)
        if config.q_lora_rank:
            writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_key_length(rank + rotary)
        writer.add_value_length(rank)
        writer.add_key_length_mla(config.qk_nope_head_dim + rotary)
        writer.add_value_length_mla(config.v_head_dim)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        writer.add_rope_dimension_count(rotary)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if rope.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(rope["long_mscale"])
        for name in ("long", "short"):
            writer.add_tensor(
                f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32)
            )


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, config: Any) -> None:
    """A byte-level BPE tokenizer that splits as SmolLM's does: digits one by one, the rest as GPT-2."""
    import json

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in backend["added_tokens"] if token["special"]}
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType.UNUSED, gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types(
        [
            kinds[0] if i not in by_id else kinds[1] if token in special else kinds[2]
            for i, token in enumerate(tokens)
        ]
    )
    merges = backend["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(number)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("type", choices=[kind.name for kind in Type])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"there is no model directory {options.model}")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    write_gguf(model, tokenizer, options.out, encode_as(Type[options.type]))
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
