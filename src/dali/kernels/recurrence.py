"""What recurrent layers do with a sequence's tokens, one after another: in this order whoever calls and however many tokens come
at once, so that a token's bits depend on those before it alone. torch's arithmetic, where there is no compiled code for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "silu": F.silu,
    "swish": F.silu,
}
EPSILON = 1e-6  # of the norm of queries and keys


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, before: Tensor, after: Tensor
) -> Tensor:
    """A causal convolution of each channel: x [tokens, channels], weight [channels, width], bias [channels] -> as x. `before`
    and `after` [width - 1, channels]: the inputs before x and before what follows it; they may be the same memory."""
    padded = torch.cat([before, x])
    taps = weight.float().unbind(-1)
    total = 0 if bias is None else bias.float()
    for tap, first in zip(taps, range(len(taps)), strict=True):
        total = total + padded[first : first + len(x)].float() * tap
    after.copy_(padded[len(padded) - len(after) :])
    return ACTIVATIONS[activation](total).to(x.dtype)  # type: ignore[arg-type]


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    normalised: bool,
    before: Tensor,
    after: Tensor,
) -> Tensor:
    """The gated delta rule (arXiv 2412.06464), and with a decay a channel Kimi's (arXiv 2510.26692): for each token and head, the
    state S [key width, value width] is decayed, corrected by beta * (value - S^T key) along the key, and read by the query.

    query and key [tokens, key heads, key width], each head for as many consecutive heads of values; value [tokens, heads, value
    width]; decay, a logarithm, [tokens, heads] or [tokens, heads, key width]; beta [tokens, heads]; before and after [heads, key
    width, value width], float32 -> as value. normalised: queries and keys are divided by their norms first.
    """
    groups = value.shape[1] // key.shape[1]
    q, k = (part.float().repeat_interleave(groups, 1) for part in (query, key))
    if normalised:
        q, k = (part * torch.rsqrt((part * part).sum(-1, keepdim=True) + EPSILON) for part in (q, k))
    q = q * query.shape[-1] ** -0.5
    kept = decay.float().exp()
    kept = kept[..., None, None] if decay.dim() == 2 else kept[..., None]
    out = torch.empty_like(value)
    state = before
    for token in range(len(value)):
        state = state * kept[token]
        delta = (value[token].float() - (state * k[token][..., None]).sum(-2)) * beta[token].float()[:, None]
        state = state + k[token][..., None] * delta[:, None]
        out[token] = (state * q[token][..., None]).sum(-2)
    after.copy_(state)
    return out


def selective_scan(
    x: Tensor,
    steps: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor | None,
    step_bias: Tensor,
    limits: tuple[float, float],
    before: Tensor,
    after: Tensor,
) -> Tensor:
    """A selective state space (Mamba2, arXiv 2405.21060): for each token and head, the state is multiplied by e^(rate * step) and
    takes step * x along b; the output is what c reads of it, and skip * x. A step is the softplus of what is given and its bias,
    within limits.

    x [tokens, heads, width]; steps [tokens, heads]; rate, skip and step_bias [heads]; b and c [tokens, groups, state], each group
    for as many consecutive heads; before and after [heads, state, width or more], float32 -> float32, as x.
    """
    heads, width = x.shape[1:]
    each = heads // b.shape[1]
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    state = before[..., :width]
    for token in range(len(x)):
        step = F.softplus(steps[token] + step_bias).clamp(*limits).float()
        put, read = (part[token].float().repeat_interleave(each, 0)[..., None] for part in (b, c))
        taken = x[token].float()
        state = state * (rate.float() * step).exp()[:, None, None] + put * (taken * step[:, None])[:, None]
        out[token] = (state * read).sum(1)
        if skip is not None:
            out[token] += taken * skip.float()[:, None]
    after[..., :width] = state
    return out
