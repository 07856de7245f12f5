"""Exact arithmetic on the weights that packed bytes stand for: what the compiled kernels are held to.

Activations stay floats throughout, so what is left is rounding in the arithmetic's own type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dali
from dali.fused.dense import linears_of
from dali.hooks.seam import experts_modules, set_dali_layer
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format
from dali.kernels.packing import pack, unpack


class ExactExperts:
    """One layer's experts, dequantized: called as transformers calls an experts module."""

    def __init__(self, layout: ExpertLayout, records: Sequence[Tensor], dtype: torch.dtype) -> None:
        assert layout.shape.gated
        assert not layout.shape.biased
        self.activation, self.dtype = layout.shape.activation, dtype
        unpacked = [layout.unpack(record) for record in records]
        self.experts = [(w.gate.to(dtype), w.up.to(dtype), w.down.to(dtype)) for w in unpacked]

    def __call__(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """hidden [tokens, hidden], ids and weights [tokens, top_k] -> [tokens, hidden], of the type of `hidden`."""
        x, weights = hidden.to(self.dtype), weights.to(self.dtype)
        out = torch.zeros_like(x)
        for expert, (gate, up, down) in enumerate(self.experts):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            inputs = x[token]
            inner = self.activation(F.linear(inputs, gate), F.linear(inputs, up))
            out.index_add_(0, token, F.linear(inner, down) * weights[token, slot, None])
        return out.to(hidden)


def make_exact(llm: dali.LLM, dense: Format | None) -> None:
    """Compute a model that torch's kernels run with exact experts in float32, its linears' weights rounded to `dense`."""
    for records, module in zip(llm.loaded.pool.records, experts_modules(llm.model).values(), strict=True):
        set_dali_layer(module, ExactExperts(llm.layout, records, torch.float32))
    if dense is not None:
        for linear in linears_of(llm.model).values():
            rounded = unpack(pack(linear.weight, dense), *linear.weight.shape, dense)
            linear.weight = nn.Parameter(rounded, requires_grad=False)  # embeddings may share the old one
