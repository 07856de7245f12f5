"""Routers in one native call. A router is told by what it answers on a probe: a formula that has its parts must give the same
weights to the same experts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dali.fused.dense import epsilon_of, is_plain_memory
from dali.fused.probe import REFUSALS
from dali.hooks import seam
from dali.kernels import native

Routed = tuple[Tensor, Tensor, Tensor]  # logits, weights, ids, as routers answer

PROBED_TOKENS, TELLING_TOKENS = 128, 16
CORRECTIONS = ("e_score_correction_bias", "expert_bias")
SCALES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")
GROUPS = (("num_group", "topk_group"), ("n_group", "topk_group"))  # all, kept
EPSILONS = (0.0, 1e-20, 1e-6)  # what is added to the sum of weights before they are divided by it
LOW = -70.0  # a logit whose sigmoid is far below them


class Parts(NamedTuple):
    """A router's tensors. `given`: its block hands it the correction in every call. `before`: a norm of its input."""

    weight: Tensor
    bias: Tensor | None
    correction: Tensor | None
    given: tuple[Tensor, ...]
    before: native.NormParts | None
    expert_scales: Tensor | None


class FusedRouter(nn.Module):
    """A router whose formula is known, in one call. A token's answer does not depend on how many share the call."""

    def __init__(self, router: Any, parts: Parts, routing: native.Routing, dtype: torch.dtype) -> None:
        """`dtype`: of the gate inputs."""
        super().__init__()
        self.plain, self._given, self.dtype = router.forward, parts.given, dtype
        self.routing = routing
        self.weight = parts.weight
        self.register_buffer("bias", parts.bias, persistent=False)
        self.register_buffer("correction", None if parts.given else parts.correction, persistent=False)
        flat = [None if part is None else part.detach().flatten() for part in (parts.bias, parts.correction)]
        scales = None if parts.expert_scales is None else parts.expert_scales.detach()
        self.register_buffer("expert_scales", scales, persistent=False)
        self.before = parts.before
        self.native = native.Router(parts.weight.detach(), routing, flat[0], flat[1], scales)

    def forward(self, hidden: Tensor, *given: Tensor) -> Routed:
        x = hidden.reshape(-1, hidden.shape[-1])
        known = len(given) == len(self._given) and all(
            a is b for a, b in zip(given, self._given, strict=True)
        )
        if x.dtype != self.dtype or not known:
            return self.plain(hidden, *given)  # type: ignore[no-any-return]
        if self.before is None:
            return self.native(x)
        logits, weights, ids = self.native(native.rms_norm(x, *self.before))
        return logits.float().softmax(-1), weights, ids  # as those with a norm answer


def fuse_routers(model: nn.Module) -> None:
    """Replace every router whose formula a probe confirms by the fused one."""
    for name in seam.experts_modules(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        for label, router in list(parent.named_children()):
            if label in seam.ROUTERS and (fused := _fused(router, parent, _dtype(model))) is not None:
                setattr(parent, label, fused)


def _dtype(model: Any) -> torch.dtype:
    return model.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]


@torch.inference_mode()
def _fused(router: Any, parent: Any, dtype: torch.dtype) -> FusedRouter | None:
    parts = _parts(router, parent)
    if parts is None or dtype not in native.ROUTED_DTYPES:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBED_TOKENS, parts.weight.shape[1], generator=generator).to(dtype)
    try:
        answers: Routed = router(probe, *parts.given)
        if (
            parts.before is not None
        ):  # it answers with probabilities, whose logits differ by one number a token
            probe = native.rms_norm(probe, *parts.before)
            logits, shares = functional.linear(probe, parts.weight), answers[0].float().log()
            theirs = shares + (logits - shares).median(-1, keepdim=True).values
            answers = theirs.to(logits.dtype), *answers[1:]
        plain = answers
        if parts.expert_scales is not None:
            plain = answers[0], answers[1] / parts.expert_scales[answers[2]], answers[2]
        routing = _routing(router, parts, plain, dtype)
        if routing is None:
            return None
        scored = dict.fromkeys((torch.float32, routing.logits_dtype))
        for judged, by_logit, rounded in product((2, 1), (False, True), scored):
            choice = replace(routing, judged=judged, by_logit=by_logit, scored=rounded)
            fused = FusedRouter(router, parts, choice, dtype)
            if _agree(answers, fused.native(probe), fused):
                return fused
        return None
    except REFUSALS:  # it wants more than the gate input, or says something else
        return None


def _parts(router: Any, parent: Any) -> Parts | None:
    """A router's tensors by their names and shapes; None where there is one whose part is not known."""
    weight, bias, correction, scale, expert_scales = None, None, None, None, None
    for path, tensor in [*router.named_parameters(), *router.named_buffers()]:
        name = path.rpartition(".")[2]
        if name == "weight" and weight is None:
            weight = tensor
        elif path == "bias":
            bias = tensor
        elif name in CORRECTIONS:
            correction = tensor
        elif path == "scale":
            scale = tensor
        elif path == "per_expert_scale":
            expert_scales = tensor
        else:
            return None
    if weight is None or weight.dim() != 2 or weight.dtype not in native.ROUTED_DTYPES:
        return None
    given = tuple(tensor for name in CORRECTIONS if isinstance(tensor := getattr(parent, name, None), Tensor))
    every = [part for part in (bias, correction, expert_scales, *given) if part is not None]
    if len(given) > 1 or (given and correction is not None) or any(p.numel() != len(weight) for p in every):
        return None
    if not all(is_plain_memory(part) for part in (weight, *every)):
        return None
    before = None if scale is None else (scale.float() * router.scalar_root_size, epsilon_of(router.norm))
    return Parts(weight, bias, given[0] if given else correction, given, before, expert_scales)


def _routing(router: Any, parts: Parts, answers: Routed, dtype: torch.dtype) -> native.Routing | None:
    """The formula that gives the weights of `answers`, if it is one of those known."""
    logits, weights, ids = answers
    formula = _formula(router, answers)
    if formula is None:
        return None
    score, normalise, scale = formula
    epsilon = _epsilon(router, parts, dtype, scale) if normalise and score == "sigmoid" else 0.0
    if epsilon is None:
        return None
    cast = parts.weight.dtype == dtype and torch.equal(logits, logits.to(dtype).to(logits.dtype))
    groups, kept = next(
        (
            [int(getattr(router, name) or 1) for name in names]
            for names in GROUPS
            if hasattr(router, names[0])
        ),
        [1, 1],
    )
    return native.Routing(
        ids.shape[1],
        weights.dtype,
        score,
        normalise,
        epsilon,
        float(getattr(router, "norm_min", 0)),
        scale,
        groups,
        kept,
        rounded=dtype if cast else logits.dtype,
        logits_dtype=logits.dtype,
    )


def _formula(router: Any, answers: Routed) -> tuple[str, bool, float] | None:
    """(score, whether weights are over their sum, scale) that give the weights of `answers`."""
    logits, weights, ids = answers
    close = _close(weights.dtype, logits.dtype)
    scales = [1.0, *(float(getattr(router, name)) for name in SCALES if hasattr(router, name))]
    for score in ("softmax", "sigmoid"):
        chosen = _scores(score, logits).gather(1, ids)
        for normalise in (False, True):
            shares = chosen / chosen.sum(-1, keepdim=True) if normalise else chosen
            for scale in scales:
                if torch.allclose(weights.float(), shares * scale, rtol=close, atol=close / 4):
                    return score, normalise, scale
    return None


def _epsilon(router: Any, parts: Parts, dtype: torch.dtype, scale: float) -> float | None:
    """What is added to the sum of weights, which an input tells whose logits are all so low that it counts. None: one that is not
    known, or there is no such input."""
    weight = parts.weight.float()
    x = (weight.T @ torch.linalg.solve(weight @ weight.T, torch.full((len(weight), 1), LOW))).T.to(dtype)
    logits, weights, ids = router(x, *parts.given)
    chosen = logits.float().sigmoid().gather(1, ids)
    for epsilon in EPSILONS:
        expected = chosen / (chosen.sum() + epsilon) * scale
        told = float(chosen.sum()) < min(EPSILONS[1:])
        if told and torch.allclose(weights.float(), expected, rtol=1e-2, atol=0):
            return epsilon
    return None


def _scores(score: str, logits: Tensor) -> Tensor:
    return logits.float().softmax(-1) if score == "softmax" else logits.float().sigmoid()


def _close(*dtypes: torch.dtype) -> float:
    """Up to which difference two ways of computing in these dtypes agree."""
    return max(1e-5, *(4 * torch.finfo(dtype).eps for dtype in dtypes))


def _agree(expected: Routed, ours: Routed, fused: FusedRouter) -> bool:
    """Whether both give each expert the same weight. Tokens whose choice the logits' difference may turn cannot tell."""
    logits, weights, _ = expected
    routing, correction = fused.routing, fused.native.correction
    if (ours[0].shape, ours[0].dtype) != (logits.shape, logits.dtype) or routing.top_k == logits.shape[1]:
        return False
    close = _close(routing.rounded, fused.weight.dtype)
    if not torch.allclose(ours[0], logits, rtol=0, atol=close * float(logits.abs().amax())):
        return False
    plain = routing.by_logit or (routing.score == "softmax" and correction is None)
    ranks, mine = (
        told.float() if plain else _scores(routing.score, told).to(routing.scored).float()
        for told in (logits, ours[0])
    )
    difference = (ranks - mine).abs().amax()
    if correction is not None:
        ranks = ranks + correction
    telling = torch.ones(len(ranks), dtype=torch.bool)
    if routing.groups > routing.kept_groups:
        grouped = ranks.view(len(ranks), routing.groups, -1)
        worth = grouped.topk(min(routing.judged, grouped.shape[2])).values.sum(-1)
        telling = _gap(worth, routing.kept_groups) > 4 * difference
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter(
            1, worth.topk(routing.kept_groups).indices, True
        )
        ranks = grouped.masked_fill(~kept[:, :, None], -torch.inf).flatten(1)
    telling &= _gap(ranks, routing.top_k) > 2 * difference
    theirs, same = (torch.zeros_like(ranks).scatter(1, i, w.float())[telling] for _, w, i in (expected, ours))
    close = _close(weights.dtype, logits.dtype)
    return int(telling.sum()) >= TELLING_TOKENS and torch.allclose(theirs, same, rtol=close, atol=close / 4)


def _gap(values: Tensor, kept: int) -> Tensor:
    """How far the last of the `kept` highest of each row is above the next."""
    ranked = values.sort(descending=True).values
    return ranked[:, kept - 1] - ranked[:, kept]
