"""Which experts stay in RAM where not all of a model's fit: the rest are on disk, and a read that finds no free place takes
another expert's.

The pool is one for all layers, as its places are all alike. A policy says what experts are worth there, and which layers may have
to give one up; `policies.places.Places` keeps the books and finds who goes. Nothing is ever written back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence


class PoolPolicy(ABC):
    """Gives up the expert of the lowest rank, of those of all layers.

    `experts`: routed experts a layer; `slots`: places of the pool; `read_seconds` [layers]: what it takes to read an expert of
    each layer back.
    """

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        self.layers = layers
        self.experts = experts
        self.slots = slots
        self.read_seconds = tuple(read_seconds)

    @abstractmethod
    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        """What each expert of the layer is worth in RAM from now on, there or not. Called once a step and layer, as soon as its
        routing is known; `workload[e]`: the step's tokens that expert e computes out of RAM, or is copied from there for. Experts
        that are on an accelerator count as 0: they need no place here."""

    def worth(self, rank: float, wait: float) -> float:
        """What an expert of that rank is worth as its layer's next turn is `wait` of a step away (0 to 1): among layers the
        lowest worth goes first, within one the lowest rank."""
        return rank

    def donors(self, layer: int, counts: Sequence[int]) -> Iterable[int]:
        """The layers that may give up an expert for one of `layer`; `counts`: how many places each layer holds."""
        return range(self.layers)
