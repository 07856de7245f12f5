"""Which expert each neuron of a layer belongs to, and the router that finds the right experts.

The energy of a neuron for a token is (activation * norm of its down column)^2, as a share of the token's. The
partition climbs the energy kept: the sum over tokens of the energy of the k experts chosen for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from build import EXPERT_NEURONS, EXPERTS
from smollm2 import HIDDEN, NEURONS
from torch import Tensor


@dataclass
class Partition:
    assign: np.ndarray  # [neurons] the expert of each
    router: Tensor  # [experts, hidden], representable in float16
    oracle_kept: dict[int, float]  # by top-k: energy kept if the best experts are chosen
    router_kept: dict[int, float]  # and by the router

    def neuron_mask(self, x: Tensor, top_k: int) -> Tensor:
        """1 for the neurons of the experts that the router chooses: [tokens, neurons]."""
        return chosen(x @ self.router.T, top_k) @ one_hot(self.assign).T


def one_hot(assign: np.ndarray) -> Tensor:
    """[neurons, experts]"""
    return F.one_hot(torch.from_numpy(assign).long(), EXPERTS).float()


def chosen(score: Tensor, top_k: int) -> Tensor:
    """1 for the top-k of each row: [tokens, experts]."""
    return torch.zeros_like(score).scatter_(1, score.topk(top_k, 1).indices, 1.0)


def exchange(gain: np.ndarray, assign: np.ndarray, sweeps: int = 4) -> np.ndarray:
    """Climb the sum of gain[j, assign[j]] by swapping equal numbers of neurons between pairs of experts."""
    assign = assign.copy()
    for _ in range(sweeps):
        moved = 0
        for a in range(EXPERTS):
            for b in range(a + 1, EXPERTS):
                in_a, in_b = np.flatnonzero(assign == a), np.flatnonzero(assign == b)
                loss_a, loss_b = gain[in_a, a] - gain[in_a, b], gain[in_b, b] - gain[in_b, a]
                order_a, order_b = np.argsort(loss_a), np.argsort(loss_b)
                n = int(np.count_nonzero(np.sort(loss_a) + np.sort(loss_b) < -1e-12))
                assign[in_a[order_a[:n]]], assign[in_b[order_b[:n]]] = b, a
                moved += n
        if not moved:
            break
    return assign


def balanced_kmeans(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clusters of equal size of the normalised rows of features [neurons, dimensions]."""
    centres = features[rng.choice(NEURONS, EXPERTS, replace=False)]
    assign = rng.permutation(np.repeat(np.arange(EXPERTS), EXPERT_NEURONS))
    for _ in range(12):
        assign = exchange(features @ centres.T, assign, sweeps=2)
        centres = np.stack([features[assign == expert].mean(0) for expert in range(EXPERTS)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True) + 1e-9
    return assign


class RouterFit:
    """A linear router fitted to the experts' shares of each token's energy by listwise cross-entropy."""

    def __init__(self, x: Tensor, token_weight: Tensor) -> None:
        covariance = (x * token_weight[:, None]).T @ x / token_weight.sum()
        values, vectors = torch.linalg.eigh(covariance)
        self.whitening = (
            vectors * (values + 1e-3 * values.mean()).rsqrt()
        )  # the fit is badly conditioned without
        self.x, self.token_weight = x @ self.whitening, token_weight
        self.router = torch.zeros(EXPERTS, HIDDEN)  # in whitened coordinates

    def fit(self, share: Tensor, steps: int, rate: float) -> Tensor:
        """Go on from the last fit; the router [experts, hidden] for x as it came. share [tokens, experts]."""
        router = self.router.clone().requires_grad_(True)
        adam = torch.optim.Adam([router], lr=rate, betas=(0.9, 0.99))
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-4
            log_probability = F.log_softmax(self.x @ router.T, -1)
            loss = -((log_probability * share).sum(1) * self.token_weight).sum() / self.token_weight.sum()
            loss = loss + 1e-4 * router.pow(2).sum() / EXPERTS
            adam.zero_grad()
            loss.backward()
            adam.step()
        self.router = router.detach()
        return self.router @ self.whitening.T


def learn_partition(
    x: Tensor, energy: Tensor, token_weight: Tensor, top_ks: list[int], rng: np.random.Generator
) -> Partition:
    """For the first of top_ks; the others are only measured. x [tokens, hidden], energy [tokens, neurons]."""
    top_k = top_ks[0]
    weighted_energy = energy * token_weight[:, None]

    def kept(share: Tensor, choice: Tensor) -> float:
        return float(((share * choice).sum(1) * token_weight).sum() / token_weight.sum())

    # start from neurons that fire on the same tokens, seen through 96 random projections
    projection = torch.from_numpy(rng.standard_normal((96, len(x))).astype(np.float32)) / math.sqrt(len(x))
    features = (projection @ energy.sqrt()).T
    features = features - features.mean(0)
    assign = balanced_kmeans((features / (features.norm(dim=1, keepdim=True) + 1e-9)).numpy(), rng)

    # in turn, tokens pick their best experts and neurons move to the experts picked where they matter
    history: list[float] = []
    for i in range(10):
        share = energy @ one_hot(assign)
        choice = chosen(share, top_k)
        history.append(kept(share, choice))
        assign = exchange((weighted_energy.T @ choice).numpy(), assign)
        if i > 2 and history[-1] - history[-2] < 2e-4:
            break
    share = energy @ one_hot(assign)
    oracle_kept = {k: kept(share, chosen(share, k)) for k in top_ks}

    # then the same with the router's choice
    router_fit = RouterFit(x, token_weight)
    router = router_fit.fit(share, 40, 0.05)
    for steps in (25, 25, 50):
        assign = exchange((weighted_energy.T @ chosen(x @ router.T, top_k)).numpy(), assign)
        share = energy @ one_hot(assign)
        router = router_fit.fit(share, steps, 0.03)
    router = router.half().float()
    return Partition(assign, router, oracle_kept, {k: kept(share, chosen(x @ router.T, k)) for k in top_ks})
