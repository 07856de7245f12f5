#!/usr/bin/env python3
"""Write a trained dali-tiny as Hugging Face's Qwen3MoeForCausalLM in bfloat16, and compare the logits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import (
    CONTEXT,
    EXPERT_WIDTH,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KEY_VALUE_HEADS,
    LAYERS,
    NORM_EPS,
    ROPE_THETA,
    TOP_K,
    DaliTiny,
)
from safetensors.torch import save_file
from tokens import END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    "{% else %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def hugging_face_weights(model: DaliTiny) -> dict[str, Tensor]:
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for i, layer in enumerate(model.layers):
        names = {
            "input_layernorm": layer.input_norm,
            "post_attention_layernorm": layer.ffn_norm,
            "self_attn.q_proj": layer.query,
            "self_attn.k_proj": layer.key,
            "self_attn.v_proj": layer.value,
            "self_attn.o_proj": layer.out,
            "self_attn.q_norm": layer.query_norm,
            "self_attn.k_norm": layer.key_norm,
            "mlp.gate": layer.router,
        }
        for expert in range(EXPERTS):
            gate, up = layer.gate_up[expert].split(EXPERT_WIDTH)
            names[f"mlp.experts.{expert}.gate_proj"] = gate
            names[f"mlp.experts.{expert}.up_proj"] = up
            names[f"mlp.experts.{expert}.down_proj"] = layer.down[expert]
        weights |= {f"model.layers.{i}.{name}.weight": weight for name, weight in names.items()}
    return {name: weight.detach().to(torch.bfloat16).clone() for name, weight in weights.items()}


def configuration() -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": EXPERT_WIDTH * TOP_K,
        "moe_intermediate_size": EXPERT_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TEXT, END_OF_TURN],
        "pad_token_id": END_OF_TEXT,
    }


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def write_model(model: DaliTiny, tokenizer: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_weights(model), out / "model.safetensors", {"format": "pt"})
    config = configuration()
    write_json(out / "config.json", config)
    special_ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    write_json(out / "generation_config.json", {**special_ids, **sampling})
    compact = json.dumps(json.loads(tokenizer.read_text(encoding="utf-8")), ensure_ascii=False)
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")
    end_of_text, end_of_turn = SPECIAL_TOKENS[END_OF_TEXT], SPECIAL_TOKENS[END_OF_TURN]
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_turn,
            "pad_token": end_of_text,
            "unk_token": end_of_text,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": SPECIAL_TOKENS[1:3],
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
    )


@torch.no_grad()
def largest_difference(model: DaliTiny, out: Path, ids: Tensor) -> float:
    """Between transformers' logits and ours for the rounded weights, ids [1, tokens]."""
    theirs, loading = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    if wrong := {kind: keys for kind, keys in loading.items() if keys}:
        raise SystemExit(f"transformers does not take the weights as they are: {wrong}")
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return float((model(ids) - theirs.eval()(ids).logits).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where train.py left model.pt")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model")
    options = parser.parse_args()
    model = DaliTiny()
    model.load_state_dict(torch.load(options.work / "model.pt"))
    write_model(model, options.work / "tokenizer.json", options.out)
    with np.load(options.work / "stories.held.npz") as file:
        ids = torch.from_numpy(file["ids"][:CONTEXT].astype(np.int64))[None]
    difference = largest_difference(model, options.out, ids)
    print(f"{options.out}: largest logit difference from transformers {difference:.1e}")


if __name__ == "__main__":
    main()
