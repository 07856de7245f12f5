"""What a system is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dali.policies import Policies
from dali.systems._lossy import LossyParts


class Create(Protocol):
    """Fresh policies for a model of `layers` MoE layers with `experts` routed experts, `top_k` of them a token, on an
    accelerator that holds `capacity` experts a layer."""

    def __call__(self, layers: int, experts: int, top_k: int, capacity: int, seed: int = 0) -> Policies: ...


@dataclass(frozen=True)
class System:
    """One system.

    `source`: paper and code. `differs`: where its released code and its paper part, which of both this follows, and what had
    to be changed to fit here. `lossy`: its parts that change the model's output, off unless asked for, none of a lossless system;
    `parts`: what they do. `signals`: of "weights", "scores", "gate_inputs", "embeddings", those it decides by. `variants`: other
    settings its paper or code names, as "system:variant"; `variant_parts`: their lossy parts, where they differ. `guarded`:
    whether dali's guards may rest its prefetches and swaps.
    """

    name: str
    title: str
    create: Create
    source: str
    differs: str = ""
    lossy: tuple[str, ...] = ()
    parts: LossyParts | None = None
    signals: frozenset[str] = frozenset()
    variants: Mapping[str, Create] = field(default_factory=dict)
    variant_parts: Mapping[str, LossyParts] = field(default_factory=dict)
    guarded: bool = False
