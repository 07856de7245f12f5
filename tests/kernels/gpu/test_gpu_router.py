"""The GPU's routers, run by a stand-in for a warp: the CPU's choices and the bits of their weights."""

from __future__ import annotations

import itertools
from typing import Any

import device_calls as calls
import pytest
import shimmed
import torch
from torch import Tensor

from dali.kernels import native

F32, BF16 = torch.float32, torch.bfloat16


def differing(folder, x: Tensor, weight: Tensor, how: native.Routing, bias=None, correction=None) -> int:
    """Choices and weights that are not the CPU's."""
    tokens, experts = len(x), len(weight)
    _, wanted, wanted_ids = native.Router(weight, how, bias, correction)(x)
    scratch = [torch.full((tokens, experts), float("nan")) for _ in range(3)]
    weights = torch.full((tokens, how.top_k), float("nan"))
    ids = torch.full((tokens, how.top_k), -1, dtype=torch.int64)

    def dtype_of(tensor: Tensor | None) -> int:
        return 0 if tensor is None else shimmed.DTYPES[tensor.dtype]

    given: list[Any] = [x, weight, bias, correction]
    call = calls.RouteCall(
        *(None if tensor is None else tensor.data_ptr() for tensor in given),
        *(tensor.data_ptr() for tensor in (*scratch, weights, ids)),
        *(tokens, x.shape[1], experts, how.top_k, int(how.score == "sigmoid"), int(how.by_logit)),
        *(how.groups, how.kept_groups, how.judged, int(how.normalise)),
        *map(dtype_of, given),
        *(shimmed.DTYPES[dtype] for dtype in (how.rounded, how.logits_dtype, how.weights_dtype)),
        *(how.epsilon, how.floor, how.scale),
    )
    kernels = shimmed.common(folder)
    shimmed.run(kernels.run_route_products, call, tokens * experts)
    shimmed.run(kernels.run_route_choose, call, tokens)
    nan = wanted.float().isnan() & weights.isnan()
    return int((ids != wanted_ids).sum() + ((weights != wanted.float()) & ~nan).sum())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (6, 3)])
def test_every_formula(folder, score, corrected, groups):
    generator = torch.Generator().manual_seed(1)
    experts, hidden = 42, 70
    weight = torch.randn(experts, hidden, generator=generator) / 4
    bias, correction = torch.randn(experts, generator=generator), torch.rand(experts, generator=generator)
    for normalise, by_logit, judged, (epsilon, floor) in itertools.product(
        (False, True), (False, True), (1, 2), ((0.0, 0.0), (0.25, 0.4))
    ):
        how = native.Routing(
            5, F32, score, normalise, epsilon, floor, 2.5, *groups, judged=judged, by_logit=by_logit
        )
        x = torch.randn(2, hidden, generator=generator)
        assert differing(folder, x, weight, how, bias, correction if corrected else None) == 0


@pytest.mark.parametrize("x_dtype", [F32, BF16])
@pytest.mark.parametrize("weight_dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("tokens", "experts", "hidden", "top_k"), [(1, 128, 300, 8), (40, 8, 64, 2), (3, 33, 31, 33)]
)
def test_sizes_and_dtypes(folder, x_dtype, weight_dtype, tokens, experts, hidden, top_k):
    generator = torch.Generator().manual_seed(hidden)
    x = torch.randn(tokens, hidden, generator=generator).to(x_dtype)
    weight = (torch.randn(experts, hidden, generator=generator) / 8).to(weight_dtype)
    bias = torch.randn(experts, generator=generator).to(weight_dtype)
    for rounded, normalise in ((F32, True), (BF16, False)):
        how = native.Routing(top_k, BF16, normalise=normalise, rounded=rounded, logits_dtype=rounded)
        assert differing(folder, x, weight, how, bias) == 0


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("corrected", [False, True])
def test_logits_at_the_edges(folder, score, corrected):
    experts, infinity, nan = 40, float("inf"), float("nan")
    x, weight = torch.zeros(1, 32), torch.zeros(experts, 32)
    correction = torch.zeros(experts) if corrected else None
    edges = [
        {},
        {3: nan},
        {0: nan, 9: nan, 10: infinity},
        {0: -infinity, 1: infinity},
        {7: 100.0, 8: -100.0, 9: 88.5, 10: -88.5, 11: -104.0},
        {5: -0.0, 6: 0.0},
        dict.fromkeys(range(experts), -infinity),
        dict.fromkeys(range(experts), 3e38),
    ]
    for normalise, edge in itertools.product((False, True), edges):
        bias = torch.zeros(experts)
        for expert, value in edge.items():
            bias[expert] = value
        how = native.Routing(4, F32, score, normalise)
        assert differing(folder, x, weight, how, bias, correction) == 0
