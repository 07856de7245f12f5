"""Predictors against closed forms, and on the routers of real families, called as the models' own modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dali.hooks import seam
from dali.runtime.predict import GateShift, LinearMap, next_router
from families import random_model


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Notes:
    """A router that notes its input and routes by the largest entries."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(hidden)
        values, ids = hidden.topk(2)
        return hidden, values, ids


@pytest.mark.parametrize("distance", [1, 2, 4])
def test_the_later_router_sees_the_shifted_gate_input(distance: int) -> None:
    routers = [Notes() for _ in range(6)]
    shifts = [randn(8, seed=layer) for layer in range(6 - distance)]
    predictor, hidden = GateShift(routers, distance, shifts), randn(3, 8, seed=9)
    for layer in range(6):
        predicted = predictor.predict(layer, hidden)
        if layer + distance >= 6:
            assert predicted is None
            continue
        assert predicted is not None
        assert predicted[0] == layer + distance
        torch.testing.assert_close(routers[layer + distance].seen[-1], hidden + shifts[layer])
        assert torch.equal(predicted[1], (hidden + shifts[layer]).topk(2).indices)
    assert sum(len(router.seen) for router in routers) == 6 - distance


def test_the_next_gate_sees_the_gate_input_as_it_is() -> None:
    routers, hidden = [Notes(), Notes()], randn(3, 8)
    GateShift(routers, 1).predict(0, hidden)
    assert routers[1].seen[0] is hidden


def test_the_next_router_sees_the_residual_through_its_own_norm() -> None:
    routers, norms = [Notes() for _ in range(3)], [randn(8, seed=layer) for layer in range(3)]
    norms[0][3] = 0
    residual = randn(4, 8, seed=9)
    predictor = next_router(routers, norms)
    for layer in range(2):
        given, wanted = (
            torch.nn.functional.rms_norm(residual, (8,), norm, 1e-6) for norm in norms[layer : layer + 2]
        )
        predicted = predictor.predict(layer, given)
        assert predicted is not None
        assert predicted[0] == layer + 1
        seen = routers[layer + 1].seen[-1]
        known = norms[layer] != 0
        torch.testing.assert_close(seen[:, known], wanted[:, known])
        assert not seen[:, ~known].any()
    assert predictor.predict(2, residual) is None


@pytest.mark.parametrize("distance", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_map_takes_the_largest_logits(distance: int, dtype: torch.dtype) -> None:
    maps = [randn(9, 5, seed=layer) for layer in range(4 - distance)]
    predictor, hidden = LinearMap(maps, distance, 3), randn(7, 8, seed=9).to(dtype)
    for layer, weights in enumerate(maps):
        target, ids = predictor.predict(layer, hidden)  # type: ignore[misc]
        logits = hidden.float() @ weights[:8] + weights[8]
        assert target == layer + distance
        assert torch.equal(ids, logits.topk(3).indices)
    assert predictor.predict(len(maps), hidden) is None


@contextmanager
def ids_given(experts: Any) -> Iterator[list[Tensor]]:
    """The expert ids a model's own block hands to its experts module."""
    found: list[Tensor] = []

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[1])

    handle = experts.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "family", ["deepseek_v2", "gpt_oss", "phimoe", "qwen3_moe", "qwen2_moe", "mixtral", "olmoe"]
)
@torch.inference_mode()
def test_a_familys_routing_is_its_own(family: str) -> None:
    """Group-limited, biased and sparse-mixer routing: the ids are those the model's block gives its experts."""
    changes: dict[str, Any] = {"num_hidden_layers": 4}
    if family == "gpt_oss":
        changes["layer_types"] = ["full_attention"] * 4
    model = random_model(family, **changes)
    paths = list(seam.experts_modules(model))
    routers = seam.routers(model, 64)
    assert routers is not None
    assert (
        len(routers) == len(paths) == (3 if family in ("deepseek_v2", "qwen2_moe") else 4)
    )  # of layers that have experts
    hidden = randn(11, 64)
    for distance in (1, 2):
        predictor = GateShift(routers, distance)
        for layer in range(len(routers) - distance):
            target, ids = predictor.predict(layer, hidden)  # type: ignore[misc]
            assert target == layer + distance
            block = model.get_submodule(paths[target].rpartition(".")[0])
            with ids_given(model.get_submodule(paths[target])) as given:
                block(hidden[None])
            assert torch.equal(ids, given[0])
