"""Sizes of a model in GGUF files: by their tensors, and by the keys that loading makes transformers' configuration of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod

from dali.doctor.outline import GgufOutline, windows
from dali.doctor.sizes import FEWEST_ROWS, Dense, Kept, ModelSizes
from dali.loading.gguf.checks import check
from dali.loading.gguf.families import Family, family_of
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Made
from dali.store.gguf.blocks import SAME_VALUES
from dali.store.gguf.header import GgufTensor, damaged

NUMBERED = re.compile(r"blk\.(\d+)\.(.+)")
EXPERTS = re.compile(r"ffn_(gate_up|gate|up|down)(?:_exps|\.\d+)\.(weight|bias)")
NOT_WEIGHTS = re.compile(r"rope_(factors_long|factors_short|freqs)\.weight")
ROUTER = "ffn_gate_inp.weight"
PLAIN = (
    "norm",
    "conv1d",
    "ssm_a",
    "ssm_d",
    "shortconv.conv",
)  # parts of a name: matrices that are no linears


def sizes_of(outline: GgufOutline) -> ModelSizes:
    """DaliError for a file that loading would refuse, as far as its header tells."""
    gguf = outline.gguf
    family = family_of(gguf)
    keys = Keys(gguf, family.architecture)
    check(keys, family)
    layers = keys.layers
    fields = family.fields(keys)
    by_layer: dict[int, dict[str, GgufTensor]] = {}
    dense: dict[str, GgufTensor] = {}
    for name, tensor in gguf.tensors.items():
        numbered = NUMBERED.fullmatch(name)
        if numbered is not None and int(numbered[1]) >= layers:
            continue
        found = EXPERTS.fullmatch(numbered[2]) if numbered else None
        if numbered is not None and found is not None:
            by_layer.setdefault(int(numbered[1]), {})[f"{found[1]} {found[2]}"] = tensor
        elif not NOT_WEIGHTS.fullmatch(name):
            dense[name] = tensor
    if not by_layer:
        raise damaged(gguf.path, "it lacks the tensors of experts")
    parts = by_layer[min(by_layer)]
    down = parts.get("down weight")
    if down is None:
        raise damaged(gguf.path, "it lacks the tensors of experts")
    return ModelSizes(
        name=outline.name,
        family=family.model_type,
        layers=layers,
        moe_layers=len(by_layer),
        experts=keys.required("expert_count"),
        top_k=keys.required("expert_used_count"),
        hidden=down.shape[-2],
        intermediate=down.shape[-1],
        gated="gate weight" in parts or "gate_up weight" in parts,
        biased="down bias" in parts,
        dense=tuple(_dense(dense, family)),
        kept=tuple(_kept(dense, keys, fields)),
        context=keys.required("context_length"),
        vocab=gguf.tensors["token_embd.weight"].shape[0],
        dtype="float32",
        file_bytes=outline.nbytes,
        rope=keys.rope(),
        own=tuple(_formats(parts) for _, parts in sorted(by_layer.items())),
        state=_state(fields, keys),
        gguf=True,
    )


def _formats(parts: Mapping[str, GgufTensor]) -> dict[str, str]:
    """Matrix -> the packed format with its values."""
    named = {
        name.removesuffix(" weight"): tensor for name, tensor in parts.items() if name.endswith(" weight")
    }
    if "gate_up" in named:
        named |= {"gate": named["gate_up"], "up": named["gate_up"]}
    return {name: SAME_VALUES[named[name].type.name] for name in ("gate", "up", "down") if name in named}


def _dense(tensors: Mapping[str, GgufTensor], family: Family) -> Iterable[Dense]:
    made = {leaf for part in family.made.values() if isinstance(part, Made) for leaf in part.tensors}
    for name, tensor in tensors.items():
        numbered = NUMBERED.fullmatch(name)
        leaf = numbered[2] if numbered else name
        columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        rows = prod(tensor.shape) // columns
        linear = (
            len(tensor.shape) == 2
            and leaf.endswith(".weight")
            and rows >= FEWEST_ROWS
            and leaf != ROUTER
            and not any(part in leaf for part in PLAIN)
        )
        embeds = leaf == "token_embd.weight"
        kind = "embedding" if embeds else "router" if leaf == ROUTER else "linear" if linear else "other"
        own = SAME_VALUES[tensor.type.name] if linear and leaf not in made else ""
        yield Dense(rows, columns, kind, own, head=name == "output.weight")


def _kept(tensors: Mapping[str, GgufTensor], keys: Keys, fields: Fields) -> Iterable[Kept]:
    seen = windows({"sliding_window": keys.key("attention.sliding_window", None), **fields}, keys.layers)
    heads = keys.per_layer("attention.head_count_kv") if "attention.head_count_kv" in keys else None
    queries = keys.per_layer("attention.head_count")

    def rows(layer: int, leaf: str) -> int:
        tensor = tensors.get(f"blk.{layer}.{leaf}.weight")
        return 0 if tensor is None else tensor.shape[0]

    for layer in range(keys.layers):
        groups = max((heads or queries)[layer], 1)
        if latent := rows(layer, "attn_kv_a_mqa"):
            rotary = keys.key("rope.dimension_count", 0)
            yield Kept(1, latent - rotary, rotary, seen[layer], queries[layer])
        elif key := rows(layer, "attn_k"):
            value = (rows(layer, "attn_v") or key) // groups
            normed = rows(layer, "attn_k_norm") > 0
            yield Kept(groups, key // groups, value, seen[layer], queries[layer], normed)
        elif (both := rows(layer, "attn_qkv")) and not rows(layer, "ssm_out"):
            width = both // (queries[layer] + 2 * groups)
            yield Kept(groups, width, width, seen[layer], queries[layer])


def _state(fields: Fields, keys: Keys) -> int:
    if "ssm.state_size" not in keys:
        return 0
    mamba = keys.mamba()
    layers = sum(f"blk.{layer}.ssm_out.weight" in keys.gguf.tensors for layer in range(keys.layers))
    return 2 * 4 * layers * mamba.heads * mamba.width * mamba.state
