"""Attention while decoding: the products of queries, keys and values, and whole modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.linear import Linear

DecodingToken = tuple[int, int, int, int, int, int]  # as attend() has it
NormParts = tuple[Tensor, float]  # weight and epsilon
ATTENTION_DTYPES = (torch.float32, torch.bfloat16)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tokens: list[DecodingToken],
    scale: float,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Decoding: each of `tokens` attends to its own sequence's keys and values, after its own were added to them.

    query [heads, step's tokens, width], keys and values [kv heads, step's tokens, their width], of one of ATTENTION_DTYPES; out
    [step's tokens, heads, value width], of which the tokens' rows are written. tokens: (row, address of the sequence's keys
    [kv heads, capacity, width], of its values, capacity, place of the new token, first place it sees) each. sinks: one more
    logit a head, without a value.
    """
    assert query.stride(2) == keys.stride(2) == values.stride(2) == 1 and out.is_contiguous()
    if sinks is not None:
        sinks = sinks.to(torch.float32).contiguous()
    library.attend(
        DTYPES[query.dtype],
        query.shape[0],
        keys.shape[0],
        query.shape[2],
        values.shape[2],
        scale,
        (query.data_ptr(), query.stride(1), query.stride(0)),
        (keys.data_ptr(), keys.stride(1), keys.stride(0)),
        (values.data_ptr(), values.stride(1), values.stride(0)),
        0 if sinks is None else sinks.data_ptr(),
        tokens,
        out.data_ptr(),
    )


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are rotated: the first `width` values of a head, by `given` values of cos and of sin, as many or half,
    of `dtype`. `turning`: `halves` (value i with the one half the width later, as transformers' rotate_half), `neighbours`
    (2i with 2i + 1) or `none`."""

    turning: str
    width: int
    given: int
    dtype: torch.dtype

    def takes(self, cos: Tensor, sin: Tensor, rows: int) -> bool:
        """Whether these are cos and sin of `rows` tokens as the rotation reads them."""
        return self.turning == "none" or all(
            part.dtype == self.dtype and part.numel() == rows * self.given and part.shape[-1] == self.given
            for part in (cos, sin)
        )


class Attention:
    """A whole attention module while decoding: query, key, value and output projections, norms of query and key (before the
    rotation, or after it: `norms_follow`), heads of `width` for queries and keys; values times value_scale; `sinks` as in
    attend()."""

    def __init__(
        self,
        linears: Sequence[Linear],
        norms: Sequence[NormParts | None],
        width: int,
        rotary: Rotary,
        scale: float,
        sinks: Tensor | None = None,
        norms_follow: bool = False,
        value_scale: float = 1.0,
    ) -> None:
        query, key, value, self._out = linears
        self.linears, self.rotary, self.norms_follow = linears, rotary, norms_follow
        heads, self.kv_heads = query.rows // width, key.rows // width
        self.width, self.value_width = width, value.rows // self.kv_heads
        assert self._out.columns == heads * self.value_width and heads % self.kv_heads == 0
        assert rotary.width <= width and rotary.given in (rotary.width, rotary.width // 2)
        sinks = None if sinks is None else sinks.float().contiguous()
        self._tensors = norms, sinks
        self._module = library.AttentionModule(
            *(linear._packed for linear in linears),
            *map(norm_parts, norms),
            norms_follow,
            (rotary.turning, rotary.width, rotary.given, DTYPES[rotary.dtype]),
            (heads, self.kv_heads, width, self.value_width),
            scale,
            value_scale,
            0 if sinks is None else sinks.data_ptr(),
        )

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, tokens: list[DecodingToken]) -> Tensor:
        """x [..., hidden], cos and sin [..., given] for as many rows; tokens as in attend() -> the module's output, as x."""
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        rows = x.numel() // x.shape[-1]
        assert self.rotary.takes(cos, sin, rows)
        out = x.new_empty((*x.shape[:-1], self._out.rows))
        library.decode(
            self._module,
            x.data_ptr(),
            DTYPES[x.dtype],
            rows,
            cos.data_ptr(),
            sin.data_ptr(),
            tokens,
            out.data_ptr(),
        )
        return out


def norm_parts(parts: NormParts | None) -> tuple[int, int, float]:
    """A norm as the library takes one that may be missing."""
    return (0, 0, 0.0) if parts is None else (parts[0].data_ptr(), parts[0].numel(), parts[1])
