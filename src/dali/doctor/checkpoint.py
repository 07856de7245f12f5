"""Sizes of a model in safetensors files: by the names and shapes of its tensors, and by what its config.json says in plain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dali.doctor.outline import SafetensorsOutline, Stored, windows
from dali.doctor.refusals import check_config, check_experts, quantization
from dali.doctor.sizes import FEWEST_ROWS, CannotTell, Dense, Kept, ModelSizes
from dali.loading.further_tokens import BLOCK
from dali.loading.room import MOST_LAYERS

LAYER = re.compile(r"^(?P<decoder>(?:[\w]+\.)*?)(?:layers|h|blocks)\.(?P<number>\d+)\.(?P<part>.+)$")
EXPERT = re.compile(r"^(?P<module>.*?\.experts)\.(?:(?P<number>\d+)\.)?(?P<part>.+)$")
FUSED = re.compile(r"(?:input|output)_linear\.weight$")  # all experts of a layer, without a name for it
RECURRENT = re.compile(
    r"\.(A_log|\w*conv1d)(\.|$)"
)  # in layers that keep a state in the place of keys and values
SCALES = (
    "_scale_inv",
    "_scales",
    "_scale",
    ".input_scale",
    "inv_freq",
)  # of quantized weights, and what is no weight
DOWN = ("down_proj", "w2", "output_linear", "fc2")
FUSED_GATE = {"gate_up_proj", "input_linear", "w13", "fc1"}  # gate and up in one
UP = ("up_proj", "w3", "w1", "gate_proj", *FUSED_GATE)
ROUTERS = ("gate", "router")
KEY_NORMS = {"k_norm", "key_layernorm", "k_layernorm"}
USED = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
KINDS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
MOST = 2**32  # what no size of a model reaches
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Experts:
    """What the tensors of experts tell."""

    layers: int
    count: int
    hidden: int
    intermediate: int
    gated: bool
    biased: bool


def sizes_of(outline: SafetensorsOutline) -> ModelSizes:
    """DaliError for a model that loading would refuse, as far as headers tell; CannotTell for what they do not tell."""
    check_config(outline)
    text = outline.text
    layers = _layers(text)
    decoder = _decoder(outline.tensors)
    tensors = {
        name: one
        for name, one in outline.tensors.items()
        if not name.endswith(SCALES) and _belongs(name, decoder, layers)
    }
    experts = {name: one for name, one in tensors.items() if _is_expert(name, one)}
    check_experts(outline, bool(experts))
    found, top_k = _experts(experts, text), _top_k(text)
    if top_k > found.count:
        raise CannotTell(
            f"The config.json routes a token to {top_k} experts, and a layer has {found.count}.",
            "Download it again.",
        )
    dense = {name: one for name, one in tensors.items() if name not in experts}
    return ModelSizes(
        name=outline.name,
        family=str(outline.config.get("model_type")),
        layers=layers,
        moe_layers=found.layers,
        experts=found.count,
        top_k=top_k,
        hidden=found.hidden,
        intermediate=found.intermediate,
        gated=found.gated,
        biased=found.biased,
        dense=tuple(_dense(dense, _tied(outline))),
        kept=tuple(_kept(dense, text, layers)),
        context=_number(text, "max_position_embeddings", "n_positions", default=0),
        vocab=_number(text, "vocab_size", default=0),
        dtype=_dtype(outline.config),
        file_bytes=outline.nbytes,
        rope=_rope(text),
        state=_state(text, layers),
        quantization=quantization(outline),
    )


def _number(config: dict[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        if type(value := config.get(name)) is int and 0 < value < MOST:
            return value
    if default is None:
        raise CannotTell(
            f"The config.json does not say {names[0]}, or says {config.get(names[0])!r:.60}.",
            "Download it again.",
        )
    return default


def _layers(text: dict[str, Any]) -> int:
    """Some models say a kind of each layer in the place of their number."""
    kinds = next((text[name] for name in KINDS if isinstance(text.get(name), list | str)), ())
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers", default=len(kinds) or None)
    if layers > MOST_LAYERS:
        raise CannotTell(
            f"The config.json says {layers} layers, and no model has more than {MOST_LAYERS}.",
            "Download it again.",
        )
    return layers


def _tied(outline: SafetensorsOutline) -> bool:
    """Whether logits are made by the embeddings' matrix."""
    said = [part.get("tie_word_embeddings") for part in (outline.config, outline.text)]
    return True in said and False not in said


def _top_k(text: dict[str, Any]) -> int:
    layers = text.get("moe_topk")  # of some models a number a layer
    if isinstance(layers, list) and layers and type(layers[0]) is int:
        return int(layers[0])
    return _number(text, *USED)


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    return rope if isinstance(rope, dict) else {}


def _dtype(config: dict[str, Any]) -> str:
    for part in (config, config.get("text_config") or {}):
        for name in ("dtype", "torch_dtype"):
            if (said := part.get(name)) in DTYPES:
                return str(said)
    return "float32"


def _decoder(names: Iterable[str]) -> str:
    """What the decoder's tensors begin with: that of the layers which have experts."""
    first = next((found for name in names if ".experts." in name and (found := LAYER.match(name))), None)
    first = first or next((found for name in names if (found := LAYER.match(name))), None)
    return "" if first is None else first["decoder"]


def _belongs(name: str, decoder: str, layers: int) -> bool:
    """Whether a tensor is of the model for text: not of what stands around its decoder, nor of blocks behind the last layer."""
    if BLOCK.match(name) or ".mtp." in name:
        return False
    if not name.startswith(decoder):
        return "lm_head" in name or name.startswith("output.")
    found = LAYER.match(name)
    return found is None or int(found["number"]) < layers


def _is_expert(name: str, one: Stored) -> bool:
    found = EXPERT.match(name)
    if found is not None:
        return not found["part"].endswith(("e_score_correction_bias", "expert_bias"))
    return len(one.shape) == 3 and bool(FUSED.search(name))


def _part(name: str) -> str:
    """The matrix that a tensor of experts is, without what its form adds."""
    parts = name.removesuffix("_blocks").removesuffix("_bias").removesuffix("_weight").split(".")
    return next(part for part in reversed(parts) if part not in ("weight", "bias"))


def _experts(tensors: dict[str, Stored], text: dict[str, Any]) -> _Experts:
    layers = {found["number"] for name in tensors if (found := LAYER.match(name))}
    first = min(layers, key=int)
    own = {
        name: one
        for name, one in tensors.items()
        if (found := LAYER.match(name)) and found["number"] == first
    }
    numbers = {int(found["number"]) for name in own if (found := EXPERT.match(name)) and found["number"]}
    parts = {_part(name): _shape(name, one) for name, one in own.items() if _is_matrix(name, one)}
    if len({(_part(name), *_shape(name, one)) for name, one in own.items() if _is_matrix(name, one)}) != len(
        parts
    ):
        raise CannotTell(
            "The experts of a layer differ in their shapes, which `dali doctor` does not count.",
            "Load the model with `dali run`, which asks transformers.",
        )
    down = next((parts[part] for part in parts if part in DOWN), None)
    if down is None:
        raise CannotTell(
            f"The experts' tensors ({', '.join(sorted(parts))}) are called as dali does not know them.",
            "Load the model with `dali run`, which asks transformers.",
        )
    names = set(parts)
    gated = len(names & {"w1", "w3"}) == 2 or bool(names & {"gate_proj", *FUSED_GATE})
    count = max(numbers) + 1 if numbers else next(one.shape[0] for one in own.values() if len(one.shape) > 1)
    hidden, intermediate = _oriented(down, parts, text)
    biased = any(name.endswith("bias") for name in own)
    return _Experts(len(layers), count, hidden, intermediate, gated, biased)


def _is_matrix(name: str, one: Stored) -> bool:
    return not name.endswith("bias") and len(one.shape) > 1


def _shape(name: str, one: Stored) -> tuple[int, int]:
    """Of one expert's matrix, as it lies."""
    if name.endswith("_blocks"):  # [experts, rows, groups, bytes] of two values each
        return one.shape[-3], one.shape[-2] * one.shape[-1] * 2
    return one.shape[-2], one.shape[-1]


def _oriented(
    down: tuple[int, int], parts: dict[str, tuple[int, int]], text: dict[str, Any]
) -> tuple[int, int]:
    """Hidden and intermediate size: `down` leads from the second to the first, and may lie the other way round."""
    hidden = text.get("hidden_size")
    if hidden == down[0] != down[1]:
        return down
    if hidden == down[1] != down[0]:
        return down[1], down[0]
    up = next((parts[part] for part in UP if part in parts), down)
    return (down[1], down[0]) if up[0] == down[1] and up[1] != down[0] else down


def _dense(tensors: dict[str, Stored], tied: bool) -> Iterable[Dense]:
    for name, one in tensors.items():
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        head = name.endswith(("lm_head.weight", "output.weight")) and LAYER.match(name) is None
        if (head and tied) or name.endswith("e_score_correction_bias"):
            continue
        columns = one.shape[-1] if len(one.shape) > 1 else 1
        rows = one.elements // max(columns, 1)
        embeds = "embed" in leaf or leaf in ("wte", "word_embeddings")
        linear = (
            name.endswith(".weight") and len(one.shape) == 2 and rows >= FEWEST_ROWS and "norm" not in leaf
        )
        routes = leaf in ROUTERS or name.endswith(tuple(f".{router}.layer.weight" for router in ROUTERS))
        yield Dense(
            rows,
            columns,
            "embedding" if embeds else "router" if routes else "linear" if linear else "other",
            head=head,
        )


def _kept(tensors: dict[str, Stored], text: dict[str, Any], layers: int) -> Iterable[Kept]:
    """By what makes keys and values of a token: a matrix each, one for both, or latents."""
    seen = windows(text, layers)
    heads = _number(text, "num_attention_heads", "n_head", default=1)
    groups = _number(text, "num_key_value_heads", default=heads)
    rows: dict[int, dict[str, int]] = {}
    recurrent = set()
    for name, one in tensors.items():
        if (found := LAYER.match(name)) is None:
            continue
        layer = int(found["number"])
        if RECURRENT.search(name):
            recurrent.add(layer)
        elif name.endswith(".weight"):
            leaf = found["part"].removesuffix(".weight").rpartition(".")[2]
            if len(one.shape) == 2 or leaf in KEY_NORMS:
                rows.setdefault(layer, {}).setdefault(leaf, one.shape[0])
    for layer in range(layers):
        own = {} if layer in recurrent else rows.get(layer, {})
        if latent := own.get("kv_a_proj_with_mqa"):
            rotary = _number(text, "qk_rope_head_dim", default=0)
            yield Kept(1, latent - rotary, rotary, seen[layer], heads)
        elif key := own.get("k_proj", own.get("wk")):
            value = own.get("v_proj", own.get("wv", key)) // groups
            yield Kept(groups, key // groups, value, seen[layer], heads, not own.keys().isdisjoint(KEY_NORMS))
        elif both := own.get("qkv_proj", own.get("query_key_value", own.get("Wqkv"))):
            width = both // (heads + 2 * groups)
            yield Kept(groups, width, width, seen[layer], heads)


def _state(text: dict[str, Any], layers: int) -> int:
    """Bytes of the recurrent state of layers that have one: matrices in float32, as they are and as they were."""
    kinds = text.get("layer_types") or text.get("layers_block_type") or []
    count = sum(kind in ("linear_attention", "mamba") for kind in kinds[:layers] if isinstance(kind, str))
    delta = [text.get(f"linear_{name}") for name in ("num_value_heads", "key_head_dim", "value_head_dim")]
    mamba = [text.get(name) for name in ("mamba_n_heads", "mamba_d_head", "mamba_d_state")]
    for sizes in (delta, mamba):
        if all(type(one) is int for one in sizes):
            return 2 * 4 * count * sizes[0] * sizes[1] * sizes[2]  # type: ignore[operator]
    return 0
