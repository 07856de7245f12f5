"""Muon (Jordan et al., 2024): momentum, then every matrix of the update is made nearly orthogonal."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import Parameter

MOMENTUM, WEIGHT_DECAY = 0.95, 0.05


def nearly_orthogonal(matrices: Tensor) -> Tensor:
    """Five Newton-Schulz steps on [n, rows, columns], rows <= columns, with Muon's coefficients."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


class Muon:
    """For (parameter, rows): stacks of matrices of so many rows. Equal shapes go through one product."""

    def __init__(self, parameters: list[tuple[Parameter, int]], rate: float) -> None:
        self.rate = rate
        self.groups: defaultdict[tuple[int, int], list[tuple[Parameter, Tensor]]] = defaultdict(list)
        for parameter, rows in parameters:
            self.groups[rows, parameter.shape[-1]].append((parameter, torch.zeros_like(parameter)))

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        """`schedule` multiplies the rate."""
        for (rows, columns), members in self.groups.items():
            gradients = []
            for parameter, momentum in members:
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                gradient = parameter.grad.add(momentum, alpha=MOMENTUM).view(-1, rows, columns)
                gradients.append(gradient if rows <= columns else gradient.transpose(1, 2))
            update = nearly_orthogonal(torch.cat(gradients))
            if rows > columns:
                update = update.transpose(1, 2)
            rate, at = self.rate * schedule, 0
            for parameter, _ in members:
                matrices = parameter.view(-1, rows, columns)
                own = update[at : at + len(matrices)]
                at += len(matrices)
                matrices.mul_(1 - rate * WEIGHT_DECAY).sub_(own, alpha=rate * max(1.0, rows / columns) ** 0.5)
