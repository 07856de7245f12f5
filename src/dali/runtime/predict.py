"""Predicting a later MoE layer's routing from this layer's gate input.

Four predictors, each for any distance d in MoE layers:

- `next_gate`: layer l + d's own router on layer l's gate input.
- `next_router` (ours): the same on what layer l + d's norm would make of layer l's residual, which is layer l's gate input times
  the one norm's weights over the other's. What native code asks while experts are on disk (src/native/model/decoder_layer.cpp).
- `residual`: the same after adding the mean of gate_input(l + d) - gate_input(l) over calibration tokens (DALI, arXiv
  2602.03495, section on residual-based prefetching).
- `ridge` (ours): a linear map from layer l's gate input and a constant to layer l + d's router logits, a ridge regression over
  calibration tokens; its largest logits are the prediction.

The routers are the model's own modules, so group-limited, biased and sparse-mixer routing are theirs to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

Router = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""hidden [tokens, hidden] -> (logits [tokens, experts], weights and expert ids [tokens, top_k])."""


@dataclass(frozen=True)
class GateShift:
    """Runs the later router on the gate input times `scales[layer]` plus `shifts[layer]` [hidden]; None leaves it as it is."""

    routers: Sequence[Router]
    distance: int
    shifts: Sequence[Tensor] | None = None
    scales: Sequence[Tensor] | None = None

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """(layer + distance, its predicted ids [tokens, top_k]), None past the last layer."""
        target = layer + self.distance
        if target >= len(self.routers):
            return None
        scaled = hidden if self.scales is None else hidden * self.scales[layer]
        moved = scaled if self.shifts is None else scaled + self.shifts[layer]
        return target, self.routers[target](moved)[2]

    def to(self, place: torch.device) -> GateShift:
        shifts, scales = [
            None if vectors is None else [vector.to(place) for vector in vectors]
            for vectors in (self.shifts, self.scales)
        ]
        return replace(self, shifts=shifts, scales=scales)


def next_router(routers: Sequence[Router], norms: Sequence[Tensor]) -> GateShift:
    """`next_router` for the next layer. norms: the weights [hidden] of each router's RMSNorm; where one is 0, nothing is known
    of the residual."""
    scales = [torch.where(one == 0, 0, later / one) for one, later in pairwise(norms)]
    return GateShift(routers, 1, scales=scales)


@dataclass(frozen=True)
class LinearMap:
    """The top-k of `maps[layer]` [hidden + 1, experts] applied to the gate input and a constant 1."""

    maps: Sequence[Tensor]
    distance: int
    top_k: int

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """As GateShift.predict."""
        if layer >= len(self.maps):
            return None
        weights = self.maps[layer]
        logits = torch.addmm(weights[-1], hidden.to(weights.dtype), weights[:-1])
        return layer + self.distance, logits.topk(self.top_k, dim=-1).indices

    def to(self, place: torch.device) -> LinearMap:
        return replace(self, maps=[weights.to(place) for weights in self.maps])
