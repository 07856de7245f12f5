"""Predicting a later MoE layer's routing from this layer's gate input.

Three predictors, each for any distance d in MoE layers:

- `next_gate`: layer l + d's own router on layer l's gate input.
- `residual`: the same after adding the mean of gate_input(l + d) - gate_input(l) over calibration tokens (DALI, arXiv
  2602.03495, section on residual-based prefetching).
- `ridge` (ours): a linear map from layer l's gate input and a constant to layer l + d's router logits, the ridge regression
  (X'X + lambda I)^-1 X'Y over calibration tokens; its largest logits are the prediction.

The routers are the model's own modules, so group-limited, biased and sparse-mixer routing are theirs to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTORS = ("next_gate", "residual", "ridge")
CALIBRATED = {"residual": 4096, "ridge": 16384}  # tokens
RIDGE = 1e-3  # lambda, as a share of the mean of the diagonal of X'X

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


class ShiftFit:
    """Accumulates the mean step from one gate input to a later one."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, earlier: Tensor, later: Tensor, logits: Tensor) -> None:
        """Gate inputs [tokens, hidden] of both layers, and the later one's router logits [tokens, experts]."""
        step = (later.double() - earlier.double()).sum(0)
        self._sum = step if self._sum is None else self._sum + step
        self._tokens += len(earlier)

    def solve(self) -> Tensor:
        """float32 [hidden]."""
        assert self._sum is not None, "no token was added"
        return (self._sum / self._tokens).float()


class RidgeFit:
    """Accumulates the normal equations of the ridge regression."""

    def __init__(self) -> None:
        self._xx: Tensor | None = None
        self._xy: Tensor | None = None

    def add(self, earlier: Tensor, later: Tensor, logits: Tensor) -> None:
        """As ShiftFit.add."""
        x = torch.nn.functional.pad(earlier.float(), (0, 1), value=1.0)
        xx, xy = x.T @ x, x.T @ logits.float()
        self._xx = xx if self._xx is None else self._xx + xx
        self._xy = xy if self._xy is None else self._xy + xy

    def solve(self) -> Tensor:
        """float32 [hidden + 1, experts]."""
        assert self._xx is not None, "no token was added"
        damped = self._xx.clone()
        damped.diagonal().add_(RIDGE * self._xx.diagonal().mean())
        solution: Tensor = torch.linalg.solve(damped, self._xy)
        return solution


FITS: dict[str, type[ShiftFit] | type[RidgeFit]] = {"residual": ShiftFit, "ridge": RidgeFit}
