"""Routers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES

ROUTED_DTYPES = (torch.float32, torch.bfloat16)  # of weights and inputs


@dataclass(frozen=True)
class Routing:
    """How a router chooses among its experts: the `top_k` of the highest score, or logit if `by_logit`, plus correction. A score
    is the expert's share of a `softmax` of the logits, or the `sigmoid` of its own. Their scores are the weights: over their sum
    (`floor` at least) plus `epsilon` if `normalise`, times `scale` and the expert's own. Of `groups` groups of experts only those
    of the `kept_groups` best, by the sum of their `judged` highest, are in the running. Logits round to `rounded`, scores to
    `scored`."""

    top_k: int
    weights_dtype: torch.dtype
    score: str = "softmax"
    normalise: bool = False
    epsilon: float = 0.0
    floor: float = 0.0
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    judged: int = 2
    by_logit: bool = False
    rounded: torch.dtype = torch.float32
    scored: torch.dtype = torch.float32
    logits_dtype: torch.dtype = torch.float32


class Router:
    """A router of weight [experts, hidden] of one of ROUTED_DTYPES; bias of its logits, correction of its choice and
    expert_scales of its weights [experts]."""

    def __init__(
        self,
        weight: Tensor,
        routing: Routing,
        bias: Tensor | None = None,
        correction: Tensor | None = None,
        expert_scales: Tensor | None = None,
    ) -> None:
        assert weight.dtype in ROUTED_DTYPES and all(
            part is None or part.is_contiguous() for part in (weight, bias, correction, expert_scales)
        )
        self.routing, self.correction, self._tensors = routing, correction, (weight, bias, expert_scales)
        self.experts, self.hidden = weight.shape
        dtypes = routing.rounded, routing.scored, routing.logits_dtype, routing.weights_dtype
        self._router = library.Router(
            address_of(weight),
            self.hidden,
            self.experts,
            routing.top_k,
            routing.score,
            address_of(bias),
            address_of(correction),
            routing.by_logit,
            (routing.groups, routing.kept_groups, routing.judged),
            (routing.normalise, routing.epsilon, routing.floor),
            routing.scale,
            tuple(DTYPES[dtype] for dtype in dtypes),
            address_of(expert_scales),
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [tokens, hidden] -> (logits [tokens, experts], weights and ids [tokens, top_k], the highest first)."""
        x, how = x.contiguous(), self.routing
        tokens, hidden = x.shape
        assert hidden == self.hidden
        logits = torch.empty(tokens, self.experts, dtype=how.logits_dtype)
        weights = torch.empty(tokens, how.top_k, dtype=how.weights_dtype)
        ids = torch.empty(tokens, how.top_k, dtype=torch.int64)
        library.route(
            self._router,
            x.data_ptr(),
            DTYPES[x.dtype],
            tokens,
            logits.data_ptr(),
            weights.data_ptr(),
            ids.data_ptr(),
        )
        return logits, weights, ids


def gate_logits(x: Tensor, weight: Tensor) -> Tensor:
    """One logit a row: x [..., hidden] times weight [hidden], of one of ROUTED_DTYPES -> [..., 1] of x's dtype."""
    x, hidden = x.contiguous(), x.shape[-1]
    assert weight.dtype in ROUTED_DTYPES and weight.is_contiguous() and weight.numel() == hidden
    out = x.new_empty((*x.shape[:-1], 1))
    library.gate_logits(
        address_of(weight), hidden, x.data_ptr(), DTYPES[x.dtype], out.numel(), out.data_ptr()
    )
    return out


def address_of(values: Tensor | None) -> tuple[int, object]:
    """A tensor as the library takes one that may be missing: its address, or 0, and its dtype."""
    return (0, DTYPES[torch.float32]) if values is None else (values.data_ptr(), DTYPES[values.dtype])
