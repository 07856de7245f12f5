"""Attention while decoding: the products of queries, keys and values, and whole modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.native.library import DTYPES
from dali.kernels.native.linear import Linear

if TYPE_CHECKING:
    from dali.kernels.native.latent import LatentHeads

DecodingToken = tuple[int, int, int, int, int, int, bool]  # as attend() has it
# Tokens of one sequence in neighbouring rows: the first, how many, and the window that each sees, itself included, or 0.
TokenRun = tuple[DecodingToken, int, int]
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
    [kv heads, capacity, width], of its values, capacity, place of the new token, first place it sees, whether both are kept in 8
    bits, rows of bytes as in kernels/kept_rows.py) each. sinks: one more logit a head, without a value.
    """
    sinks = None if sinks is None else sinks.to(torch.float32).contiguous()
    library.attend(*_arguments(query, keys, values, scale, sinks, out), tokens, out.data_ptr())


def attend_prompt(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first: DecodingToken,
    count: int,
    window: int | None,
    scale: float,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """As attend(), for `count` tokens of one sequence in a row of the step, of which `first` is the first: the same bits as one
    after another. window: tokens that each sees, itself included; None: all before it."""
    sinks = None if sinks is None else sinks.to(torch.float32).contiguous()
    arguments = _arguments(query, keys, values, scale, sinks, out)
    library.attend_prompt(*arguments, first, count, window or 0, out.data_ptr())


def _arguments(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, sinks: Tensor | None, out: Tensor
) -> tuple[Any, ...]:
    assert query.stride(2) == keys.stride(2) == values.stride(2) == 1 and out.is_contiguous()
    return (
        DTYPES[query.dtype],
        query.shape[0],
        keys.shape[0],
        query.shape[2],
        values.shape[2],
        scale,
        *((part.data_ptr(), part.stride(1), part.stride(0)) for part in (query, keys, values)),
        0 if sinks is None else sinks.data_ptr(),
    )


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are rotated: `width` values of a head, by `given` values of cos and of sin, as many or half, of
    `dtype`. `turning`: `halves` (value i with the one half the width later, as transformers' rotate_half), `neighbours` (2i with
    2i + 1), `unzipped` (neighbours, which lie half the width apart afterwards) or `none`."""

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


@dataclass(frozen=True)
class Projections:
    """Queries, keys and values from linears of their own; norms of queries and keys before the rotation, or after it:
    `norms_follow`. Heads of `width` for queries and keys, of which the first values are rotated. Values times value_scale.
    `gated`: behind each head's query are as many values, by whose sigmoid what the head found is multiplied. value_norm: of
    values."""

    query: Linear
    key: Linear
    value: Linear
    width: int
    query_norm: NormParts | None = None
    key_norm: NormParts | None = None
    norms_follow: bool = False
    value_scale: float = 1.0
    gated: bool = False
    value_norm: NormParts | None = None

    def sizes(self, out: Linear, rotary: Rotary) -> tuple[int, int, int, int]:
        """Heads, heads of keys and values, width of a query's or key's head, of a value's."""
        query_width = 2 * self.width if self.gated else self.width
        heads, kv_heads = self.query.rows // query_width, self.key.rows // self.width
        value_width = self.value.rows // kv_heads
        assert out.columns == heads * value_width and heads % kv_heads == 0 and rotary.width <= self.width
        assert not self.gated or value_width == self.width
        return heads, kv_heads, self.width, value_width

    def kept(self, rotary: Rotary) -> tuple[int, int, int]:
        """What is kept of a token: heads, and the widths of its keys and values."""
        kv_heads = self.key.rows // self.width
        return kv_heads, self.width, self.value.rows // kv_heads

    def native(self) -> Any:
        norms = norm_parts(self.query_norm), norm_parts(self.key_norm)
        linears = (linear._packed for linear in (self.query, self.key, self.value))
        return library.Projections(
            *linears, *norms, self.norms_follow, self.value_scale, self.gated, norm_parts(self.value_norm)
        )


@dataclass(frozen=True)
class LatentProjections:
    """Keys and values from a latent: keys_down makes it, and behind it what all heads' keys end with, which is rotated. These two
    are kept, as one head's keys, and `heads` attends to them. query_down and query_norm: of the queries' own latent."""

    query: Linear
    keys_down: Linear
    keys_norm: NormParts | None
    heads: LatentHeads
    query_down: Linear | None = None
    query_norm: NormParts | None = None

    def sizes(self, out: Linear, rotary: Rotary) -> tuple[int, int, int, int]:
        """As of Projections."""
        of = self.heads
        width = of.key_width + rotary.width
        assert self.keys_down.rows == of.rank + rotary.width
        assert (self.query.rows, out.columns) == (of.heads * width, of.heads * of.value_width)
        return of.heads, 1, width, of.value_width

    def kept(self, rotary: Rotary) -> tuple[int, int, int]:
        """As of Projections."""
        return 1, self.heads.rank + rotary.width, 0

    def native(self) -> Any:
        down = [] if self.query_down is None else [self.query_down._packed]
        norms = norm_parts(self.query_norm), norm_parts(self.keys_norm)
        return library.LatentProjections(
            down, norms[0], self.query._packed, self.keys_down._packed, norms[1], self.heads.native
        )


class Attention:
    """A whole attention module while decoding: what makes queries, keys and values, their rotation, attention, the output
    projection; `sinks` as in attend()."""

    def __init__(
        self,
        projections: Projections | LatentProjections,
        out: Linear,
        rotary: Rotary,
        scale: float,
        sinks: Tensor | None = None,
    ) -> None:
        assert rotary.given in (rotary.width, rotary.width // 2)
        self.projections, self.out, self.rotary = projections, out, rotary
        self.gated = isinstance(projections, Projections) and projections.gated
        sizes = projections.sizes(out, rotary)
        self.kept = projections.kept(rotary)
        self._sinks = None if sinks is None else sinks.float().contiguous()
        self._module = library.AttentionModule(
            projections.native(),
            out._packed,
            (rotary.turning, rotary.width, rotary.given, DTYPES[rotary.dtype]),
            sizes,
            scale,
            0 if self._sinks is None else self._sinks.data_ptr(),
        )

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, runs: list[TokenRun]) -> Tensor:
        """x [..., hidden], cos and sin [..., given] for as many rows, which the tokens of `runs` are in order -> the module's
        output, as x."""
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        rows = x.numel() // x.shape[-1]
        assert self.rotary.takes(cos, sin, rows)
        out = x.new_empty((*x.shape[:-1], self.out.rows))
        library.decode(
            self._module,
            x.data_ptr(),
            DTYPES[x.dtype],
            rows,
            cos.data_ptr(),
            sin.data_ptr(),
            runs,
            out.data_ptr(),
        )
        return out


def norm_parts(parts: NormParts | None) -> tuple[int, int, float, Any]:
    """A norm as the library takes one that may be missing."""
    if parts is None:
        return 0, 0, 0.0, library.Dtype.f32
    weight, epsilon = parts
    return weight.data_ptr(), weight.numel(), epsilon, DTYPES[weight.dtype]
