"""How likely the model itself held the tokens that were chosen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dali.engine.sampling import in_float32


@dataclass(frozen=True)
class TokenLogprob:
    """One token's natural log probability, under the model's distribution before temperature, filters and penalties; `top`:
    the likeliest tokens and theirs, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: Tensor, token: int, most: int) -> TokenLogprob:
    """Of `token`, and of the `most` likeliest, for `logits` [vocab] that it was chosen from."""
    row = in_float32(logits.detach().cpu()).log_softmax(0)
    values, ids = row.topk(min(most, len(row)))
    return TokenLogprob(token, float(row[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
