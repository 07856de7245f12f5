"""A random model in OLMoE-1B-7B's shape (16 layers of 64 experts, top-8; 6.9 billion weights) for measuring speed.

The checkpoint's dense weights are drawn; its experts are holes in a sparse file, because 13 GB of noise serve nobody. The
experts that run are packed from noise straight into the expert stores the loader looks for, by the loader's own builder, so
loading and decoding take the product's path.

    python benchmarks/tools/random_olmoe.py DIRECTORY [--quants w4 w8]

DIRECTORY is a model directory then; the stores go to dali's cache (DALI_CACHE_DIR), 3.6 GB for w4 and 6.8 GB for w8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OlmoeConfig, PreTrainedTokenizerFast

from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import get_format
from dali.store.cache import store_path
from dali.store.checkpoint import INDEX, Checkpoint
from dali.store.packed.builder import ensure_store
from dali.store.packed.header import StoreHeader

LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 16, 64, 8, 2048, 1024, 50304, 16
DEVIATION = 0.02  # of every matrix; its config's initializer_range
DENSE, HOLES = "dense.safetensors", "experts.safetensors"


class NoiseExperts:
    """Experts cut out of one piece of noise, each at an offset of its own."""

    def __init__(self, shape: ExpertShape) -> None:
        self.shape = shape
        self.noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)) * DEVIATION

    def read(self, layer: int, expert: int) -> ExpertWeights:
        parts = []
        at = (layer * EXPERTS + expert) * 7919
        for rows, columns in self.shape.matrices.values():
            parts.append(self.noise[at : at + rows * columns].view(rows, columns))
            at += rows * columns
        return ExpertWeights(*parts)


def dense_weights() -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * DEVIATION).to(torch.bfloat16)

    yield "model.embed_tokens.weight", noise(VOCABULARY, HIDDEN)
    yield "lm_head.weight", noise(VOCABULARY, HIDDEN)
    yield "model.norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            yield f"{at}.{name}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name in "qkvo":
            yield f"{at}.self_attn.{name}_proj.weight", noise(HIDDEN, HIDDEN)
        yield f"{at}.mlp.gate.weight", noise(EXPERTS, HIDDEN)


def write_holes(path: Path) -> list[str]:
    """A safetensors file of all experts that takes no space on disk and reads as zeros."""
    shapes = {
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }
    nbytes = HIDDEN * INTERMEDIATE * 2
    header: dict[str, object] = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for name, shape in shapes.items():
                end = (len(header) + 1) * nbytes
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end - nbytes, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + len(header) * nbytes)
    return list(header)


def write_checkpoint(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        dtype="bfloat16",
        architectures=["OlmoeForCausalLM"],
    ).save_pretrained(directory)
    words = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w50279").save_pretrained(directory)
    dense = dict(dense_weights())
    save_file(dense, directory / DENSE, metadata={"format": "pt"})
    places = dict.fromkeys(dense, DENSE) | dict.fromkeys(write_holes(directory / HOLES), HOLES)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_store(directory: Path, quant: str) -> Path:
    """The expert store `dali.load(directory, quant=quant)` looks for."""
    shape = ExpertShape(HIDDEN, INTERMEDIATE, Activation("silu"))
    layout = ExpertLayout(shape, get_format(quant))
    header = StoreHeader(directory.name, Checkpoint(directory).fingerprint, LAYERS, EXPERTS, layout)
    path = store_path(directory, quant)
    ensure_store(path, header, NoiseExperts(shape), lambda: lambda nbytes: None)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quants", nargs="+", default=["w4", "w8"])
    options = parser.parse_args()
    if not (options.directory / INDEX).is_file():
        write_checkpoint(options.directory)
    for quant in options.quants:
        print(write_store(options.directory, quant))


if __name__ == "__main__":
    main()
