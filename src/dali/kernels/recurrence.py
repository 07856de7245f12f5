"""What recurrent layers do with a step's tokens: each sequence's one after another, in this order however many tokens come at
once, so that a token's bits depend on those before it in its sequence alone. By torch, whose activations may round by place;
native/recurrence.py has the same compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dali.kernels.formats import round_up

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "silu": F.silu,
    "swish": F.silu,
}
LANES = 16  # to whole numbers of which a head of a selective state space is padded
EPSILON = 1e-6  # of the norms of queries and keys

# A sequence's tokens in the step, its state before and after them, and copies in between: (after how many of the tokens, where).
Stretch = tuple[slice, Tensor, Tensor, list[tuple[int, Tensor]]]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """A causal convolution of each channel: x [tokens, channels], weight [channels, width], bias [channels] -> the stretches'
    rows of out, as x. States are the inputs before, [width - 1, channels]."""
    taps = weight.float().unbind(-1)
    for rows, before, after, copies in stretches:
        padded = torch.cat([before, x[rows]])
        total = torch.zeros(x[rows].shape, device=x.device) if bias is None else bias.float()
        for first, tap in enumerate(taps):
            total = total + padded[first : len(padded) - len(before) + first].float() * tap
        for tokens, to in [*copies, (rows.stop - rows.start, after)]:
            to.copy_(padded[tokens : tokens + len(to)])
        out[rows] = ACTIVATIONS[activation](total).to(out.dtype)


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    normalised: bool,
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """The gated delta rule (arXiv 2412.06464), and with a decay a channel Kimi's (arXiv 2510.26692): for each token and head, the
    state S [key width, value width] is decayed, corrected by beta * (value - S^T key) along the key, and read by the query.

    query and key [tokens, key heads, key width], each head for as many consecutive heads of values; value [tokens, heads, value
    width]; decay, a logarithm, [tokens, heads] or [tokens, heads, key width]; beta [tokens, heads] -> the stretches' rows of out,
    as value. States are [heads, key width, value width], float32. normalised: queries and keys are divided by their norms first.
    """
    groups = value.shape[1] // key.shape[1]
    q, k = (part.float().repeat_interleave(groups, 1) for part in (query, key))
    if normalised:
        q, k = (part * torch.rsqrt((part * part).sum(-1, keepdim=True) + EPSILON) for part in (q, k))
    q = q * query.shape[-1] ** -0.5
    kept = decay.float().exp()
    kept = kept[..., None, None] if decay.dim() == 2 else kept[..., None]
    for rows, before, after, copies in stretches:
        state, places = before, dict(copies)
        for token in range(rows.start, rows.stop):
            state = state * kept[token]
            found = (state * k[token][..., None]).sum(-2)
            delta = (value[token].float() - found) * beta[token].float()[:, None]
            state = state + k[token][..., None] * delta[:, None]
            out[token] = (state * q[token][..., None]).sum(-2)
            if (to := places.get(token + 1 - rows.start)) is not None:
                to.copy_(state)
        after.copy_(state)


def scan_state(heads: int, width: int, state: int) -> tuple[int, int, int]:
    """Shape of the state of a selective state space."""
    return heads, state, round_up(width, LANES)


def selective_scan(
    x: Tensor,
    steps: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    step_bias: Tensor,
    limits: tuple[float, float],
    stretches: list[Stretch],
    out: Tensor,
) -> None:
    """A selective state space (Mamba2, arXiv 2405.21060): for each token and head, the state is multiplied by e^(rate * step) and
    takes step * x along b; the output is what c reads of it, and skip * x. A step is the softplus of what is given and its bias,
    within limits.

    x [tokens, heads, width]; steps [tokens, heads]; rate, skip and step_bias [heads]; b and c [tokens, groups, state], each group
    for as many consecutive heads -> the stretches' rows of out, as x, float32. States are scan_state(), float32.
    """
    heads, width = x.shape[1:]
    each = heads // b.shape[1]
    for rows, before, after, copies in stretches:
        state, places = before[..., :width], dict(copies)
        for token in range(rows.start, rows.stop):
            step = F.softplus(steps[token] + step_bias).clamp(*limits).float()
            put, read = (part[token].float().repeat_interleave(each, 0)[..., None] for part in (b, c))
            taken = x[token].float()
            state = (
                state * (rate.float() * step).exp()[:, None, None] + put * (taken * step[:, None])[:, None]
            )
            out[token] = (state * read).sum(1)
            if skip is not None:
                out[token] += taken * skip.float()[:, None]
            if (to := places.get(token + 1 - rows.start)) is not None:
                to.zero_()[..., :width] = state
        after[..., :width] = state
