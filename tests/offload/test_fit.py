"""Fits against closed forms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dali.offload.fit import RIDGE, RidgeFit, ShiftFit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_shift_is_the_mean_step() -> None:
    earlier, later, fit = randn(50, 6), randn(50, 6, seed=1), ShiftFit()
    for rows in (slice(0, 7), slice(7, 50)):
        fit.add(earlier[rows], later[rows], later)
    assert fit.solve().dtype == torch.float32
    torch.testing.assert_close(fit.solve(), (later - earlier).mean(0))


def test_a_small_shift_of_large_bfloat16_inputs_is_kept() -> None:
    earlier, fit = torch.full((4096, 3), 64.0, dtype=torch.bfloat16), ShiftFit()
    later = earlier + 0.5
    fit.add(earlier, later, later)
    assert fit.solve().tolist() == [0.5] * 3


def test_ridge_solves_its_normal_equations() -> None:
    """(X'X + lambda I)^-1 X'Y is the least-squares fit with sqrt(lambda) I rows appended."""
    inputs, logits, fit = randn(200, 5), randn(200, 4, seed=1), RidgeFit()
    for rows in (slice(0, 64), slice(64, 200)):
        fit.add(inputs[rows], inputs[rows], logits[rows])
    x = np.hstack([inputs.double().numpy(), np.ones((200, 1))])
    damping = RIDGE * np.trace(x.T @ x) / 6
    augmented = np.vstack([x, np.sqrt(damping) * np.eye(6)])
    expected, *_ = np.linalg.lstsq(
        augmented, np.vstack([logits.double().numpy(), np.zeros((6, 4))]), rcond=None
    )
    np.testing.assert_allclose(fit.solve().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_ridge_finds_a_linear_map_and_its_constant() -> None:
    inputs, weights, constant, fit = randn(400, 5), randn(5, 4, seed=1), randn(4, seed=2), RidgeFit()
    fit.add(inputs, inputs, inputs @ weights + constant)
    torch.testing.assert_close(fit.solve(), torch.cat([weights, constant[None]]), rtol=0.01, atol=0.01)
