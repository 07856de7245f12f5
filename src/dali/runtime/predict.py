"""Predicting a later MoE layer's routing from this layer's gate input.

Three predictors, each for any distance d in MoE layers:

- `next_gate`: layer l + d's own router on layer l's gate input.
- `residual`: the same after adding the mean of gate_input(l + d) - gate_input(l) over calibration tokens (DALI, arXiv
  2602.03495, section on residual-based prefetching).
- `ridge` (ours): a linear map from layer l's gate input and a constant to layer l + d's router logits, a ridge regression over
  calibration tokens; its largest logits are the prediction.

The routers are the model's own modules, so group-limited, biased and sparse-mixer routing are theirs to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Router = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""hidden [tokens, hidden] -> (logits [tokens, experts], weights and expert ids [tokens, top_k])."""


@dataclass(frozen=True)
class GateShift:
    """Runs the later router on the gate input plus `shifts[layer]` [hidden]; None adds nothing."""

    routers: Sequence[Router]
    distance: int
    shifts: Sequence[Tensor] | None = None

    def predict(self, layer: int, hidden: Tensor) -> tuple[int, Tensor] | None:
        """(layer + distance, its predicted ids [tokens, top_k]), None past the last layer."""
        target = layer + self.distance
        if target >= len(self.routers):
            return None
        moved = hidden if self.shifts is None else hidden + self.shifts[layer]
        return target, self.routers[target](moved)[2]

    def to(self, place: torch.device) -> GateShift:
        shifts = self.shifts
        return replace(self, shifts=None if shifts is None else [shift.to(place) for shift in shifts])


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
