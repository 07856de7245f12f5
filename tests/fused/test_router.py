"""Routers in one native call: whose formulas are known, that they agree, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dali.fused.router import FusedRouter, fuse_routers
from dali.hooks import seam
from dali.kernels import native
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
UNKNOWN = {"phimoe"}  # a sparse mixer


def build(family: str, dtype: torch.dtype, **changes):
    of = decoding_model if family in DECODING else random_model
    return of(family, dtype=dtype, **changes).requires_grad_(False)


def routers(model: nn.Module) -> list:
    """Each MoE layer's router."""
    found = []
    for name in seam.experts_modules(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        found += [child for label, child in parent.named_children() if label in seam.ROUTERS]
    return found


@pytest.mark.parametrize("family", FAMILIES | DECODING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routers_of_known_formulas_are_fused_and_agree(family, dtype):
    model = build(family, dtype)
    plain = routers(model)
    fuse_routers(model)
    fused = [router for router in routers(model) if isinstance(router, FusedRouter)]
    assert len(fused) == (0 if family in UNKNOWN else len(plain))
    x = torch.randn(4, 64).to(dtype)
    for router, module in zip(plain, fused, strict=False):
        given = module._given
        expected, found = router(x, *given), module(x, *given)
        assert [part.dtype for part in found] == [part.dtype for part in expected]
        # Of a norm before it, sums and what is rounded are taken in another order.
        rounded = module.before is not None and dtype == torch.bfloat16
        torch.testing.assert_close(found[0], expected[0], **({"rtol": 0.05, "atol": 5e-3} if rounded else {}))
        if dtype == torch.float32:  # bfloat16 logits tie too often
            wanted, ours = (
                torch.zeros_like(logits).scatter(1, ids, weights)
                for logits, weights, ids in (expected, found)
            )
            torch.testing.assert_close(ours, wanted)
        many = x.repeat(9, 1)  # shared out by tokens, no longer by experts
        for part, once in zip(module(many, *given), found, strict=True):
            assert torch.equal(part, once.repeat(9, 1))


class Router(nn.Module):
    """As DeepSeek-V3's: sigmoid scores, a correction that counts for the choice alone, two of four groups."""

    def __init__(self, epsilon: float = 1e-20) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(16, 64, generator=generator) / 8)
        self.e_score_correction_bias = nn.Buffer(torch.rand(16, generator=generator) - 0.5)
        self.n_group, self.topk_group, self.epsilon = 4, 2, epsilon
        self.routed_scaling_factor = 2.5

    def score(self, logits):
        return logits.sigmoid()

    def weigh(self, weights):
        return weights / (weights.sum(-1, keepdim=True) + self.epsilon) * self.routed_scaling_factor

    def worth(self, grouped):
        return grouped.topk(2).values.sum(-1)

    def forward(self, x):
        logits = nn.functional.linear(x.float(), self.weight.float())
        scores = self.score(logits)
        grouped = (scores + self.e_score_correction_bias).view(len(x), 4, 4)
        kept = torch.zeros(len(x), 4, dtype=torch.bool)
        kept.scatter_(1, self.worth(grouped).topk(2).indices, True)
        ids = grouped.masked_fill(~kept[:, :, None], -torch.inf).flatten(1).topk(3).indices
        return logits, self.weigh(scores.gather(1, ids)), ids


class SoftmaxOfSigmoid(Router):
    def score(self, logits):
        return logits.sigmoid().softmax(-1)


class SquaredWeights(Router):
    def weigh(self, weights):
        return super().weigh(weights) ** 2


class BestOfGroup(Router):
    def worth(self, grouped):
        return grouped.amax(-1)


class LeastOfGroup(Router):
    def worth(self, grouped):
        return grouped.amin(-1)


class CorrectedWeights(Router):
    def forward(self, x):
        logits, weights, ids = super().forward(x)
        return logits, weights + self.e_score_correction_bias[ids] / 100, ids


class MoreTensors(Router):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))


class Raises(Router):
    def forward(self, x):
        raise AssertionError


def fused(router: nn.Module) -> FusedRouter | None:
    model = build("olmoe", torch.float32)
    model.model.layers[0].mlp.gate = router
    fuse_routers(model)
    found = model.model.layers[0].mlp.gate
    return found if isinstance(found, FusedRouter) else None


def test_a_formula_is_read_off_its_answers():
    routing = fused(Router()).routing
    assert (routing.score, routing.normalise, routing.scale) == ("sigmoid", True, 2.5)
    assert (routing.groups, routing.kept_groups, routing.judged, routing.top_k) == (4, 2, 2, 3)
    assert fused(BestOfGroup()).routing.judged == 1


@pytest.mark.parametrize("epsilon", [0.0, 1e-20])
def test_what_is_added_to_the_sum_is_told_where_it_counts(epsilon):
    router = Router(epsilon)
    module = fused(router)
    assert module.routing.epsilon == epsilon
    low = torch.linalg.lstsq(router.weight.detach(), torch.full((16, 1), -60.0)).solution.T
    torch.testing.assert_close(module(low)[1], router(low)[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        SoftmaxOfSigmoid,
        SquaredWeights,
        LeastOfGroup,
        CorrectedWeights,
        MoreTensors,
        Raises,
        lambda: Router(1e-3),
    ],
)
def test_other_formulas_are_refused(other):
    assert fused(other()) is None


def test_a_correction_put_elsewhere_is_used():
    model = build("hy_v3", torch.float32)
    fuse_routers(model)
    block = model.model.layers[-1].mlp
    x = torch.randn(2, 64)
    before = block.gate(x, block.e_score_correction_bias)
    other = block.e_score_correction_bias.flip(0) * 10
    after = block.gate(x, other)
    assert torch.equal(after[2].sort().values, block.gate.plain(x, other)[2].sort().values)
    assert not torch.equal(after[2].sort().values, before[2].sort().values)


def test_nan_is_routed_somewhere_and_not_for_ever():
    router = native.Router(torch.randn(8, 32), native.Routing(3, torch.float32, normalise=True))
    _, weights, ids = router(torch.full((1, 32), torch.nan))
    assert weights.isnan().all()
    assert len(set(ids[0].tolist())) == 3
