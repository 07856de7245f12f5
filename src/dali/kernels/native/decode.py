"""What a decoding step does beside experts and linears: norms, routers, attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.expert import ExpertLayout
from dali.kernels.native.experts import ExpertRecords, native_layout
from dali.kernels.native.library import DTYPES
from dali.kernels.native.linear import Linear

DecodingToken = tuple[int, int, int, int, int, int]  # as attend() has it
ATTENTION_DTYPES = (torch.float32, torch.bfloat16)

ROUTED_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + epsilon)) over the last dimension, in float32; rounded before and after weight."""
    x = x.contiguous()
    width = x.shape[-1]
    assert weight.dtype == x.dtype and weight.is_contiguous() and weight.shape == (width,)
    out = torch.empty_like(x)
    library.rms_norm(
        x.data_ptr(), weight.data_ptr(), DTYPES[x.dtype], x.numel() // width, width, epsilon, out.data_ptr()
    )
    return out


def route(
    x: Tensor, weight: Tensor, top_k: int, normalise: bool, weights_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x [tokens, hidden], weight [experts, hidden], both of one of ROUTED_DTYPES -> (logits [tokens, experts], the top_k largest
    of their softmax [tokens, top_k], over their sum if `normalise`, whose experts these are [tokens, top_k])."""
    x = x.contiguous()
    tokens, hidden = x.shape
    experts = weight.shape[0]
    assert weight.dtype == x.dtype and weight.is_contiguous() and weight.shape[1] == hidden
    logits = x.new_empty(tokens, experts)
    weights = torch.empty(tokens, top_k, dtype=weights_dtype)
    ids = torch.empty(tokens, top_k, dtype=torch.int64)
    library.route(
        x.data_ptr(),
        weight.data_ptr(),
        DTYPES[x.dtype],
        tokens,
        hidden,
        experts,
        top_k,
        normalise,
        logits.data_ptr(),
        weights.data_ptr(),
        DTYPES[weights_dtype],
        ids.data_ptr(),
    )
    return logits, weights, ids


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


class Attention:
    """A whole attention module while decoding: query, key, value and output projections, norms of query and key (weight and
    epsilon), heads of one width, rotated in halves; `sinks` as in attend()."""

    def __init__(
        self,
        linears: Sequence[Linear],
        norms: Sequence[tuple[Tensor, float] | None],
        width: int,
        scale: float,
        sinks: Tensor | None,
    ) -> None:
        query, key, _, self._out = linears
        self.linears = linears
        self.width, self.kv_heads = width, key.rows // width
        self._tensors = linears, norms, sinks = (
            linears,
            norms,
            None if sinks is None else sinks.float().contiguous(),
        )
        address = 0 if sinks is None else sinks.data_ptr()
        self._module = library.AttentionModule(
            *(linear._packed for linear in linears),
            *map(_norm, norms),
            query.rows // width,
            self.kv_heads,
            width,
            scale,
            address,
        )

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, tokens: list[DecodingToken]) -> Tensor:
        """x [..., hidden], cos and sin [..., width] for as many rows; tokens as in attend() -> the module's output, as x."""
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        assert cos.dtype == sin.dtype == x.dtype and cos.shape == sin.shape and cos.shape[-1] == self.width
        rows = cos.numel() // self.width
        assert x.numel() == rows * x.shape[-1]
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


class DecoderLayer:
    """A whole decoder layer while decoding: norms (weight and epsilon) before attention and before the experts, the router (its
    arguments as in route()), the experts' layout. Where the experts lie is told anew in every call."""

    def __init__(
        self,
        before_attention: tuple[Tensor, float],
        attention: Attention,
        before_experts: tuple[Tensor, float],
        router: tuple[Tensor, int, bool, torch.dtype],
        layout: ExpertLayout,
    ) -> None:
        self._tensors = before_attention, before_experts, router
        self.dtype = before_attention[0].dtype
        weight, top_k, normalise, weights_dtype = router
        self._layer = library.DecoderLayer(
            _norm(before_attention),
            attention._module,
            _norm(before_experts),
            (weight.data_ptr(), weight.shape[0], top_k, normalise, DTYPES[weights_dtype]),
            native_layout(layout),
        )
        self._attention = attention


def decode_layers(
    layers: Sequence[DecoderLayer],
    records: Sequence[ExpertRecords],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    tokens: list[list[DecodingToken]],
) -> tuple[Tensor, list[tuple[int, float]]]:
    """One layer after another. records: of each layer's experts; x [1, rows, hidden], cos and sin [1, rows, width]; tokens as in
    attend(), of each layer -> (the last one's output, as x, and of each layer how many experts took part and the seconds they
    took). IndexError for a router's choice that has no record."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    assert cos.dtype == sin.dtype == x.dtype and cos.shape == sin.shape
    out = torch.empty_like(x)
    outcomes = library.decode_layers(
        [layer._layer for layer in layers],
        [layer._addresses for layer in records],
        x.data_ptr(),
        DTYPES[x.dtype],
        x.shape[-2],
        cos.data_ptr(),
        sin.data_ptr(),
        tokens,
        out.data_ptr(),
    )
    return out, outcomes


class DecodingModel:
    """A whole model while decoding: embeddings [vocabulary, hidden], layers, norm (weight and epsilon), head."""

    def __init__(
        self, embeddings: Tensor, layers: Sequence[DecoderLayer], norm: tuple[Tensor, float], head: Linear
    ) -> None:
        vocabulary, hidden = embeddings.shape
        assert embeddings.is_contiguous() and norm[0].shape == (hidden,) and head.columns == hidden
        assert norm[0].dtype == embeddings.dtype
        self._tensors, self._layers, self._head = (embeddings, norm), layers, head
        self._dtype = embeddings.dtype
        self._model = library.DecodingModel(
            DTYPES[embeddings.dtype],
            embeddings.data_ptr(),
            vocabulary,
            [layer._layer for layer in layers],
            _norm(norm),
            head._packed,
        )

    def decode(
        self,
        records: Sequence[ExpertRecords],
        ids: list[int],
        rotations: list[tuple[int, int]],
        tokens: list[list[DecodingToken]],
    ) -> tuple[Tensor, list[tuple[int, float]]]:
        """One token a sequence. records: of each layer's experts; rotations: addresses of each one's cos and sin, [width] of the
        embeddings' dtype; tokens: of each layer, as in attend() -> (logits [tokens, vocabulary], of each layer what
        decode_layers() tells). IndexError for an id beyond the vocabulary."""
        logits = torch.empty(len(ids), self._head.rows, dtype=self._dtype)
        addresses = [layer._addresses for layer in records]
        return logits, self._model.decode(addresses, ids, rotations, tokens, logits.data_ptr())


def _norm(parts: tuple[Tensor, float] | None) -> tuple[int, int, float]:
    return (0, 0, 0.0) if parts is None else (parts[0].data_ptr(), parts[0].numel(), parts[1])
