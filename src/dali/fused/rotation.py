"""A model's rotary embeddings: what turns a position into cos and sin, for each kind of layer that has its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Kind = str | None  # a layer type, where the model has rotations of several
FIXED = {"default", "linear", "llama3", "yarn"}  # rotations that depend on nothing but the position


def rotary_of(model: nn.Module) -> Any | None:
    """The model's rotary module, if it has just one."""
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    return rotary[0] if len(rotary) == 1 else None


def kind_of(rotary: Any, attention: Any) -> Kind:
    """Which of its rotations an attention module is given."""
    if not isinstance(getattr(rotary, "rope_type", None), dict):
        return None
    return str(attention.config.layer_types[attention.layer_idx])


def rotate(rotary: Any, x: Tensor, positions: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """cos and sin of `positions` [1, tokens], [1, tokens, given] each. ValueError for a module that answers otherwise."""
    answer = rotary(x, positions) if kind is None else rotary(x, positions, kind)
    if not isinstance(answer, tuple) or len(answer) != 2 or answer[0].shape != answer[1].shape:
        raise ValueError("A rotary module that answers with something else than cos and sin.")
    return answer


def is_fixed(rotary: Any) -> bool:
    """Whether its rotations depend on the position alone."""
    kinds = getattr(rotary, "rope_type", None)
    return set(kinds.values()) <= FIXED if isinstance(kinds, dict) else kinds in FIXED
