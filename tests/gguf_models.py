"""Tiny GGUF models, written by the exporter that the benchmarks use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families import random_model

sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "tools"))
from export_gguf import encode_as, write_gguf

CHANGES = {  # what llama.cpp's architectures cannot say
    "qwen2_moe": {"mlp_only_layers": []},
    "phimoe": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": [4.0 + i for i in range(8)],
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_mscale": 1.2,
            "short_mscale": 1.2,
            "original_max_position_embeddings": 16,
        }
    },
}
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_end|>"]


def gguf_tokenizer() -> Any:
    """97 tokens: four special ones, single bytes, and one merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: 97 - len(SPECIAL) - 1]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, **names
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def gguf_model(family: str, **changes: Any) -> Any:
    """As `families.random_model`, without what GGUF cannot say."""
    return random_model(family, **CHANGES.get(family, {}) | changes)


def save_gguf(model: Any, path: Path, encode: Any = None, **options: Any) -> Path:
    encode = encode or encode_as(gguf.GGMLQuantizationType.F32)
    return write_gguf(model, gguf_tokenizer(), path, encode, **options)


def rewrite(
    path: Path, keys: dict[str, Any] | None = None, tensors: Any = None, added: Any = (), encode: Any = None
) -> Path:
    """Write a file anew with other values of `keys` (None: without that key), with `tensors(name, values)`: a list of
    (name, values) for each tensor, with the keys `added`: name -> (value, type), and its tensors in the types that `encode` has
    them in."""
    reader = gguf.GGUFReader(path)
    fields = {field.name: (field.contents(), field.types) for field in reader.fields.values()}
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    del reader  # unmaps the file
    architecture = (keys or {}).get("general.architecture", fields.pop("general.architecture")[0])
    writer = gguf.GGUFWriter(path, architecture)
    for name, (value, types) in fields.items():
        if not name.startswith("GGUF.") and (value := (keys or {}).get(name, value)) is not None:
            writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)
    for name, (value, kind) in dict(added).items():
        writer.add_key_value(name, value, kind)
    for name, (values, kind) in stored.items():
        for other, changed in [(name, values)] if tensors is None else tensors(name, values):
            data, stored_as = (changed, kind) if encode is None else encode(other, changed)
            writer.add_tensor(other, np.ascontiguousarray(data), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
