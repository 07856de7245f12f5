"""A model's rotary embeddings: what turns a position into cos and sin, for each kind of layer that has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Kind = str | None  # a layer type, where the model has rotations of several
Turns = tuple[Tensor, Tensor]  # cos and sin, [1, tokens, given] each
WHOLE = 16  # complex numbers: two of torch's longest vectors, as it reads them
FIXED = {
    "default",
    "linear",
    "llama3",
    "yarn",
    "proportional",
}  # rotations that depend on nothing but the position


NO_TURNS: Turns = (torch.empty(0), torch.empty(0))


class NoRotary:
    """Stands for the rotary module of a model that turns nothing."""

    rope_type = "default"

    def __call__(self, *arguments: Any) -> None:
        return None


def rotary_of(model: nn.Module) -> Any | None:
    """The model's rotary module, if it has just one, or a NoRotary."""
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not rotary:
        return NoRotary()
    return rotary[0] if len(rotary) == 1 else None


def kind_of(rotary: Any, attention: Any) -> Kind:
    """Which of its rotations an attention module is given."""
    if not isinstance(getattr(rotary, "rope_type", None), dict):
        return None
    return str(attention.config.layer_types[attention.layer_idx])


def rotate(rotary: Any, x: Tensor, positions: Tensor, kind: Kind) -> Any:
    """What the rotary module answers for `positions` [1, tokens]."""
    return rotary(x, positions) if kind is None else rotary(x, positions, kind)


def turns(rotation: Any) -> Turns | None:
    """cos and sin of what a rotary module answers: these two, or complex numbers that have them as their parts; NO_TURNS where
    there is none. None for anything else."""
    if rotation is None:
        return NO_TURNS
    if isinstance(rotation, tuple) and len(rotation) == 2:
        return rotation
    if isinstance(rotation, Tensor) and rotation.is_complex():
        return rotation.real, rotation.imag
    return None


def is_whole(rotation: Any) -> bool:
    """Whether torch rotates by these alike wherever a token stands. It multiplies complex numbers in whole vectors: the rest is
    rounded otherwise, and where it lies depends on how many tokens there are."""
    return not (isinstance(rotation, Tensor) and rotation.is_complex() and rotation.shape[-1] % WHOLE)


def is_fixed(rotary: Any) -> bool:
    """Whether its rotations depend on the position alone."""
    kinds = getattr(rotary, "rope_type", None)
    return set(kinds.values()) <= FIXED if isinstance(kinds, dict) else kinds in FIXED
