"""A random checkpoint in Qwen3.5-35B-A3B's shape, which is Qwen3.6's, for measuring speed: a fifth of its 40 layers and of its
vocabulary of 248320, so that the head's share of a token is the whole model's.

    python benchmarks/tools/random_hybrid.py DIRECTORY

All other sizes are the published ones, which are its configuration's defaults. All layers share one drawn block of experts,
rolled: routing differs, and so do the bytes at any address. 13.8 GB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

from dali.store.checkpoint import INDEX

LAYERS, VOCABULARY, CONTEXT = 8, 49664, 4096
DEVIATION = 0.02  # of every matrix; its configuration's initializer_range


def write_checkpoint(directory: Path) -> None:
    """A file a layer, and one for what is outside layers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = Qwen3_5MoeTextConfig(
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        dtype="bfloat16",
        architectures=["Qwen3_5MoeForCausalLM"],
    )
    config.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    with torch.device("meta"):
        model = Qwen3_5MoeForCausalLM(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    places = {name: _file(name) for name in shapes}
    drawn: dict[torch.Size, torch.Tensor] = {}
    for number, file in enumerate(sorted(set(places.values()))):
        tensors = {
            name: _values(name, shapes[name], number, drawn) for name in shapes if places[name] == file
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _file(name: str) -> str:
    _, _, layer = name.partition("model.layers.")
    return f"layer-{layer.split('.')[0]}.safetensors" if layer else "outside.safetensors"


def _values(name: str, shape: torch.Size, number: int, drawn: dict[torch.Size, torch.Tensor]) -> torch.Tensor:
    """One tensor of file `number`. Norms are all ones, of which the family's own are kept less one."""
    if len(shape) == 1:
        return torch.full(shape, float("linear_attn.norm" in name), dtype=torch.bfloat16)
    if len(shape) == 3 and "experts" in name:
        if shape not in drawn:
            drawn[shape] = _noise(shape, 0)
        return drawn[shape].roll(number, 0)
    return _noise(shape, number)


def _noise(shape: torch.Size, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * DEVIATION).to(torch.bfloat16)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Single bytes, one merge, and a word for every other token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, letters[0] + letters[1], "</s>"]
    words += [f"w{number}" for number in range(len(words), VOCABULARY)]
    merge = (letters[0], letters[1])
    backend = Tokenizer(models.BPE({word: token for token, word in enumerate(words)}, [merge]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    write_checkpoint(parser.parse_args().directory)


if __name__ == "__main__":
    main()
