"""Routed experts: all of a layer's step in one call, and the (token, choice) pairs it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dali.compiled import library
from dali.kernels.expert import ExpertLayout
from dali.kernels.native.library import DTYPES


@lru_cache(maxsize=64)
def native_layout(layout: ExpertLayout) -> Any:
    """The layout as the library reads it."""
    shape, offsets = layout.shape, layout.offsets
    biases = [offsets[f"{name}_bias"][0] for name in shape.matrices] if shape.biased else []
    return library.ExpertLayout(
        shape.hidden,
        shape.intermediate,
        shape.biased,
        shape.activation.kind,
        shape.activation.alpha,
        shape.activation.limit,
        [layout.formats[name].name for name in shape.matrices],
        [offsets[name][0] for name in shape.matrices],
        biases,
    )


def compute_experts(
    layout: ExpertLayout,
    records: Sequence[Tensor],
    offsets: Sequence[int],
    pairs: Tensor,
    hidden: Tensor,
    rows: Tensor,
) -> None:
    """As kernels.reference.compute_experts, in one call on dali's own threads. Tensors are on the CPU, contiguous."""
    tokens = hidden.shape[0]
    if not tokens:
        return
    hidden = hidden.contiguous()
    assert (
        rows.is_contiguous()
        and rows.dtype == torch.float32
        and rows.shape[1] == layout.shape.hidden == hidden.shape[1]
    )
    assert (
        pairs.is_contiguous()
        and pairs.dtype == torch.int64
        and offsets[-1] <= len(pairs)
        and len(offsets) == len(records) + 1
    )
    addresses = [record.data_ptr() for record in records]
    library.compute_experts(
        native_layout(layout),
        addresses,
        offsets,
        pairs.data_ptr(),
        rows.shape[0] // tokens,
        hidden.data_ptr(),
        DTYPES[hidden.dtype],
        rows.data_ptr(),
    )


def reduce_choices(rows: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """As kernels.reference.reduce_choices, rounded to `dtype`."""
    tokens, top_k = weights.shape
    out = torch.empty(tokens, rows.shape[1], dtype=dtype)
    weights = weights.to(torch.float32).contiguous()
    library.reduce_choices(
        rows.data_ptr(), weights.data_ptr(), tokens, top_k, rows.shape[1], DTYPES[dtype], out.data_ptr()
    )
    return out


def count_pairs(ids: Tensor, experts: int) -> list[int]:
    """As kernels.pairs.count_pairs."""
    assert ids.dtype is torch.int64 and ids.is_contiguous()
    workload: list[int] = library.count_pairs(ids.data_ptr(), ids.numel(), experts)
    return workload


def order_pairs(ids: Tensor, experts: int, order: Sequence[int]) -> tuple[Tensor, list[int]]:
    """As kernels.pairs.order_pairs, of `experts` experts in all."""
    assert ids.dtype is torch.int64 and ids.is_contiguous()
    pairs = torch.empty(ids.numel(), dtype=torch.int64)
    return pairs, library.order_pairs(ids.data_ptr(), len(pairs), experts, order, pairs.data_ptr())


class LayerHandle:
    """What computes a layer's experts, wherever they lie."""

    def __init__(self, layout: Any, experts: Any) -> None:
        self._layout = layout
        self._addresses = experts

    def compute(self, hidden: Tensor, ids: Tensor, weights: Tensor, workload: int = 0) -> tuple[Tensor, int]:
        """One layer's step in one call: hidden [tokens, hidden], ids int64 and weights [tokens, top_k] -> (the weighted sum of
        each token's experts [tokens, hidden] in hidden's dtype, how many experts took part). workload: address of int64
        [experts], to which the tokens that each one gets are added; 0: of none."""
        hidden, ids, weights = hidden.contiguous(), ids.contiguous(), weights.contiguous()
        tokens, top_k = ids.shape
        assert ids.dtype == torch.int64 and weights.shape == ids.shape and hidden.shape[0] == tokens
        out = torch.empty_like(hidden)
        active = library.compute_layer(
            self._layout,
            self._addresses,
            ids.data_ptr(),
            weights.data_ptr(),
            DTYPES[weights.dtype],
            tokens,
            top_k,
            hidden.data_ptr(),
            DTYPES[hidden.dtype],
            out.data_ptr(),
            workload,
        )
        return out, active


class ExpertRecords(LayerHandle):
    """All experts of a layer, packed in `layout`: `records[e]` is expert e. Keeps them alive."""

    def __init__(self, layout: ExpertLayout, records: Sequence[Tensor]) -> None:
        self.records = records
        addresses = library.ExpertRecords([record.data_ptr() for record in records])
        super().__init__(native_layout(layout), addresses)
