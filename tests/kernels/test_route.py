"""Routers' formulas against torch's, and logits of a single gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dali.kernels import native

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
HIDDEN, EXPERTS, TOKENS, TOP_K = 70, 12, 64, 3


def by_hand(logits: Tensor, how: native.Routing, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and ids."""
    scores = logits.softmax(-1) if how.score == "softmax" else logits.sigmoid()
    ranks = logits.clone() if how.by_logit else scores
    ranks = ranks if correction is None else ranks + correction
    grouped = ranks.view(len(ranks), how.groups, -1)
    worth = grouped.sort(-1).values[:, :, -how.judged :].sum(-1)
    for row, order in enumerate(worth.argsort(-1, descending=True)):
        grouped[row, order[how.kept_groups :]] = -torch.inf
    ids = grouped.flatten(1).argsort(-1, descending=True)[:, : how.top_k]
    weights = scores.gather(1, ids)
    if how.normalise:
        weights = weights / (weights.sum(-1, keepdim=True).clamp(min=how.floor) + how.epsilon)
    return weights * how.scale, ids


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (6, 3)])
@pytest.mark.parametrize(("judged", "by_logit"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("epsilon", "floor"), [(0.0, 0.0), (0.25, 0.4)])
def test_formulas(epsilon, floor, score, normalise, corrected, judged, by_logit, groups):
    torch.manual_seed(0)
    how = native.Routing(
        TOP_K, torch.float32, score, normalise, epsilon, floor, 2.5, *groups, judged=judged, by_logit=by_logit
    )
    x, weight, bias = torch.randn(TOKENS, HIDDEN), torch.randn(EXPERTS, HIDDEN) / 8, torch.randn(EXPERTS)
    correction = torch.rand(EXPERTS) if corrected else None
    logits, weights, ids = native.Router(weight, how, bias, correction)(x)
    torch.testing.assert_close(logits, x @ weight.T + bias, rtol=1e-5, atol=1e-5)
    wanted, wanted_ids = by_hand(logits, how, correction)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=1e-6)


def test_logits_round_as_told_and_come_as_told():
    torch.manual_seed(0)
    x, weight = torch.randn(4, HIDDEN).bfloat16(), torch.randn(EXPERTS, HIDDEN).bfloat16()
    exact = native.Router(weight, native.Routing(TOP_K, torch.bfloat16))(x)[0]
    how = native.Routing(TOP_K, torch.bfloat16, rounded=torch.bfloat16)
    rounded, weights, _ = native.Router(weight, how)(x)
    assert (rounded.dtype, weights.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_is_a_linear_with_one_row(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, HIDDEN).to(dtype), torch.randn(1, HIDDEN).to(dtype)
    found = native.gate_logits(x, weight)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight))
    assert torch.equal(native.gate_logits(x[1:, 2:], weight), found[1:, 2:])


@pytest.mark.parametrize("hidden", [HIDDEN, 3000])
def test_a_gate_of_many_tokens_gives_each_what_it_gets_alone(hidden):
    torch.manual_seed(0)
    x, weight = torch.randn(700, hidden), torch.randn(1, hidden)
    found = native.gate_logits(x, weight)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat([native.gate_logits(row, weight) for row in x.split(1)]), found)
