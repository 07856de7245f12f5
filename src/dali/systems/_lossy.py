"""Lossy parts: what a system changes in a model's routing or experts to be faster. They are off unless somebody asks for them.

Routing changes in steps that only decode; a prompt's tokens, and answers that share a step with one, keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dali.policies.signals import Floats, Integers

KEPT, LOW, LATER, DROPPED = range(4)
"""What becomes of a (token, choice) pair: computed as ever; with the expert's low precision; its output joins the next layer's
instead of this one's; left out."""


class Routed(NamedTuple):
    """One decoding step's routing of MoE layer `layer` of `layers`: `ids` and `weights` [tokens, top_k]; `resident`, the experts
    that are on the accelerator or on their way; `predicted` [tokens, experts], the scores this layer's router gave the gate
    inputs of the layer before (None in the first one, or where nobody asked for them)."""

    layer: int
    layers: int
    ids: Integers
    weights: Floats
    resident: Set[int]
    predicted: Floats | None = None


class Rerouted(NamedTuple):
    """What the tokens get instead, each [tokens, top_k]. A token's pair of largest weight is always KEPT."""

    ids: Integers
    weights: Floats
    fates: Integers


@dataclass(frozen=True)
class LossyParts:
    """`bits`: of all experts, quantized as the model is loaded; None leaves them. `reroute`: what a step's routing becomes, None
    where it stands; `predicts`: whether it needs `Routed.predicted`; `low`: whether it uses experts of low precision."""

    bits: int | None = None
    reroute: Callable[[Routed], Rerouted | None] | None = None
    predicts: bool = False
    low: bool = False


def shared(fates: Integers, ids: Integers) -> Integers:
    """An expert is treated alike in all of a step's tokens: as the first of KEPT, LOW, LATER, DROPPED that any of them wants."""
    experts = ids.ravel().tolist()
    best: dict[int, int] = {}
    for expert, fate in zip(experts, fates.ravel().tolist(), strict=True):
        best[expert] = min(fate, best.get(expert, fate))
    agreed = fates.flatten()
    agreed[:] = [best[expert] for expert in experts]
    return agreed.reshape(fates.shape)
