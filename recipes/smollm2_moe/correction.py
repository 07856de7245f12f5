"""What makes up for the neurons that are not chosen: a closed-form change of the down projection.

A weighted ridge regression of the routed sum on the full FFN output: first a factor for every neuron, then a
low-rank addition in int8. A token's error counts relative to the stream it is added to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 10
SCALE_RIDGE, LOW_RANK_RIDGE = 0.02, 0.1


@dataclass
class Correction:
    scale: Tensor  # [neurons] f16
    low_u: Tensor  # [hidden, rank] i8
    low_v: Tensor  # [rank, neurons] i8
    low_s: Tensor  # [rank] f32
    down: Tensor  # [hidden, neurons] the corrected projection
    residual: dict[str, float]  # relative squared error on the held-out tokens, by what is corrected


def int8_rows(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [rank, n] as int8 and the float scale of each."""
    scale = factor.abs().amax(1) / 127
    return (factor / scale[:, None]).round().to(torch.int8), scale


def fit_correction(
    stream: Tensor, neurons: Tensor, mask: Tensor, down: Tensor, token_weight: Tensor
) -> Correction:
    """stream [tokens, hidden] before the FFN, neurons and mask [tokens, neurons], down [hidden, neurons].

    token_weight [calibration tokens]; the tokens beyond those are held out.
    """
    n = len(token_weight)
    full, routed = neurons @ down.T, neurons * mask
    relative = 1.0 / ((stream + full).pow(2).mean(1) + 1e-6)

    def held_out_residual(down: Tensor) -> float:
        error = (routed[n:] @ down.T - full[n:]).pow(2).sum(1)
        return float((error * relative[n:]).sum() / (full[n:].pow(2).sum(1) * relative[n:]).sum())

    residual = {"uncorrected": held_out_residual(down)}
    weighted = routed[:n] * (token_weight * relative[:n])[:, None]
    gram = weighted.T @ routed[:n]  # [neurons, neurons]

    of_scale = gram * (down.T @ down)
    ridge = SCALE_RIDGE * (of_scale.diagonal() + of_scale.diagonal().mean())
    target = (weighted * (full[:n] @ down)).sum(0)
    scale = torch.linalg.solve(of_scale + ridge.diag(), target + ridge).clamp_(0.25, 4.0).half()
    scaled = down * scale.float()
    residual["scale"] = held_out_residual(scaled)

    ridge = LOW_RANK_RIDGE * (gram.diagonal() + gram.diagonal().mean())
    missing = full[:n] - routed[:n] @ scaled.T
    addition = torch.linalg.solve(gram + ridge.diag(), weighted.T @ missing).T  # [hidden, neurons]
    _, directions = torch.linalg.eigh(addition @ gram @ addition.T)
    u = directions[:, -RANK:]
    (low_u, scale_u), (low_v, scale_v) = int8_rows(u.T), int8_rows(u.T @ addition)
    low_u, low_s = low_u.T.contiguous(), scale_u * scale_v
    corrected = scaled + (low_u.float() * low_s) @ low_v.float()
    residual["scale and low rank"] = held_out_residual(corrected)
    residual["scale and full rank"] = held_out_residual(scaled + addition)
    return Correction(scale, low_u, low_v, low_s, corrected, residual)
