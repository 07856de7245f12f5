"""Fitting a routing predictor to what calibration tokens show: the mean step between gate inputs, or a ridge regression,
(X'X + lambda I)^-1 X'Y, from a gate input and a constant to a later router's logits. See runtime/predict.py."""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATED = {"residual": 4096, "ridge": 16384}  # tokens
RIDGE = 1e-3  # lambda, as a share of the mean of the diagonal of X'X


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
