"""Tiny random models, one a family: fast, and odd enough to catch a swapped dimension."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LONG = [4.0 + i for i in range(8)]
SHORT = [1.0 + 0.1 * i for i in range(8)]

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {
        "intermediate_size": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
    },
    "qwen2_moe": {
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 48,
        "intermediate_size": 56,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "moe_intermediate_size": 40,
        "intermediate_size": 56,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "head_dim": 16,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "moe_intermediate_size": 40,
        "intermediate_size": 56,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "num_key_value_heads": 4,
    },
    "olmoe": {"intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": None},
    "phimoe": {
        "intermediate_size": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "attention_bias": True,
        "lm_head_bias": True,
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": LONG,
            "short_factor": SHORT,
            "long_mscale": 1.2,
            "short_mscale": 1.1,
            "original_max_position_embeddings": 16,
        },
    },
    "gpt_oss": {
        "intermediate_size": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def random_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A transformers model of `family` with random weights, biases and norms."""
    config = CONFIG_MAPPING[family](**(COMMON | FAMILIES.get(family, {}) | changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    randomize(model)
    return model.eval()


@torch.no_grad()
def randomize(model: Any) -> None:
    """Give norms, biases and routers values that show: their initial ones would hide a part that is left out."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias") and ("experts" in name or "gate" in name or "router" in name):
            parameter.uniform_(-0.5, 0.5)
        elif ".gate." in name or "router" in name:
            parameter.normal_(0, 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("bias"):  # what DeepSeek-V3's routers add before they choose
            buffer.uniform_(-0.2, 0.2)


def save_model(model: Any, directory: Path, **options: Any) -> Path:
    """Write `model` as a checkpoint with a tokenizer whose token n is the letter-free word "n"."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(directory, **options)
    tokenizer = Tokenizer(
        models.WordLevel({str(i): i for i in range(model.config.get_text_config().vocab_size)}, unk_token="0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="2", pad_token="0").save_pretrained(
        directory
    )
    return directory


def save_mxfp4_model(directory: Path) -> Path:
    """Write a gpt-oss as the published ones are: MXFP4 `_blocks` and `_scales`, the rest bfloat16."""
    save_model(random_model("gpt_oss", intermediate_size=64), directory)
    generator = torch.Generator().manual_seed(0)

    def random_bytes(shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = tensor.shape  # transposed in memory, not on disk
            groups = (experts, rows, columns // 32)
            tensors[f"{name}_blocks"] = random_bytes((*groups, 16), 0, 256)
            tensors[f"{name}_scales"] = random_bytes(groups, 118, 124)
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": MXFP4}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def save_fp8_model(
    directory: Path, family: str = "qwen3_moe", block: tuple[int, int] | None = (24, 20)
) -> Any:
    """Write a model as DeepSeek-V3 is published, linears and experts in float8 with a scale a block (None: a matrix), neither
    dividing the other; returns the model whose values those are."""
    model = random_model(family)
    save_model(model, directory)
    tensors, values = {}, {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        tensors[name] = values[name] = tensor
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = block or tensor.shape
        blocks = [
            [piece.amax() / 400 for piece in band.abs().split(columns, 1)] for band in tensor.split(rows)
        ]
        scales = torch.tensor(blocks)
        packed, exact = torch.empty_like(tensor, dtype=torch.float8_e4m3fn), torch.empty_like(tensor)
        for i, j in product(*map(range, scales.shape)):
            place = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            packed[place] = (tensor[place] / scales[i, j]).to(torch.float8_e4m3fn)
            exact[place] = packed[place].float() * scales[i, j]
        tensors[name], values[name] = packed, exact
        tensors[f"{name}_scale_inv"] = scales if block else scales[0, 0]
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": block}
    (directory / "config.json").write_text(json.dumps(config))
    return model.eval()
