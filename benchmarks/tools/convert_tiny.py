"""Has llama.cpp's own converter write the models of tiny_architectures.py as GGUF: the layouts that dali's reader is held to.

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python benchmarks/tools/convert_tiny.py llama_cpp_python-*/vendor/llama.cpp OUT [NAME ...]

Needs what the converter does (sentencepiece). Its scripts are of the same release as the library they are compared with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from convert_checkpoint import convert_checkpoint, use_converter
from tiny_architectures import TINY, tiny_model

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_end|>"]
Tensors = dict[str, torch.Tensor]


def tokenizer(vocabulary: int) -> Any:
    """Special tokens, single bytes, and one merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[32:][: vocabulary - len(SPECIAL) - 1]
    tokens = {token: i for i, token in enumerate([*SPECIAL, *letters, letters[0] + letters[1]])}
    backend = Tokenizer(models.BPE(tokens, [(letters[0], letters[1])]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=SPECIAL, **names
    )


def as_published(config: dict[str, Any], tensors: Tensors) -> None:
    """What published checkpoints have otherwise than transformers saves them, as far as the converter looks at it."""
    text = config.get("text_config", config)
    kind, head = text["model_type"], text.get("head_dim")
    if kind in ("deepseek_v3", "glm4_moe_lite", "mimo_v2_flash", "minimax_m2", "dots1", "exaone_moe"):
        text["scoring_func"] = "sigmoid"
    if kind in ("afmoe", "exaone_moe"):
        text |= {"score_func": "sigmoid", "route_norm": True}
    if kind == "mimo_v2_flash":
        windowed = [layer == "sliding_attention" for layer in text["layer_types"]]
        rope = text.pop("rope_parameters")
        text |= {"swa_head_dim": head, "swa_v_head_dim": text["v_head_dim"], "topk_method": "noaux_tc"}
        text |= {"swa_num_attention_heads": text["num_attention_heads"], "swa_num_key_value_heads": 4}
        text |= {"hybrid_layer_pattern": list(map(int, windowed)), "layernorm_epsilon": text["rms_norm_eps"]}
        text |= {"partial_rotary_factor": 0.334, "rope_theta": rope["full_attention"]["rope_theta"]}
        text |= {"swa_rope_theta": rope["sliding_attention"]["rope_theta"]}
    if kind == "minimax_m2":
        text["rotary_dim"] = int(head * text["rope_parameters"]["partial_rotary_factor"])
    if kind == "hunyuan_v1_moe":
        layers = text["num_hidden_layers"]
        text |= {
            "moe_topk": [text["moe_topk"]] * layers,
            "num_shared_expert": [1] * layers,
            "use_qk_norm": True,
        }
        text |= {"moe_intermediate_size": [text["intermediate_size"]] * layers, "attention_head_dim": head}
    if kind == "qwen3_vl_moe_text":
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
    if kind == "granitemoehybrid":
        old = {"linear_attention": "mamba", "full_attention": "attention"}
        text["layer_types"] = [old[layer] for layer in text["layer_types"]]
    if kind == "phimoe":
        config["architectures"] = ["PhiMoEForCausalLM"]
        config["rope_scaling"] = config["rope_parameters"]
    if kind == "qwen4_exp_text":
        text["layer_types"] = [layer.replace("indexed", "full") for layer in text["layer_types"]]
    if kind in ("qwen3_5_moe_text", "qwen3_next"):
        _add_block_ahead(text, tensors)


def _add_block_ahead(config: dict[str, Any], tensors: Tensors) -> None:
    """A block that predicts the token after the next one: its weights are the last layer's."""
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    for name in [name for name in tensors if name.startswith(last)]:
        tensors[name.replace(last, "mtp.layers.0.")] = tensors[name].clone()
    row = torch.ones(config["hidden_size"])
    tensors["mtp.fc.weight"] = torch.ones(len(row), 2 * len(row))
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = row.clone()
    if config["model_type"] == "qwen3_5_moe_text":
        config["mtp_num_hidden_layers"] = 1


def convert(name: str, path: Path) -> None:
    """Write `TINY[name]` to `path`."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        model = tiny_model(name)
        model.save_pretrained(directory)
        tokenizer(model.config.get_text_config().vocab_size).save_pretrained(directory)
        config = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        as_published(config, tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config))
        convert_checkpoint(directory, path, "ALL_F32", ahead=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_cpp", type=Path, help="its sources: a folder with conversion/ and gguf-py/")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    use_converter(options.llama_cpp)
    options.out.mkdir(exist_ok=True)
    for name in options.names or TINY:
        convert(name, options.out / f"{name}.gguf")
        print(name, (options.out / f"{name}.gguf").stat().st_size, flush=True)


if __name__ == "__main__":
    main()
