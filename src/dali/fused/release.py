"""Taking `fuse` back: a model whose modules are torch's own again, for a device that native code on the CPU does not serve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.attention import DecodingAttention
from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.embedding import PackedEmbedding
from dali.fused.layer import DecodingLayer
from dali.fused.mlp import FusedActivation, FusedGate
from dali.fused.recurrent import FusedRecurrent
from dali.fused.router import FusedRouter
from dali.hooks.latent import SharedLatents
from dali.kernels.packing import unpack

ROWS = 1024  # of a table, decoded at a time


def release(model: Any) -> None:
    """Put back every module that native code took the place of. Linears and embeddings keep the values that they were packed in,
    in the model's own dtype."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    for module in model.modules():
        fused = module.__dict__.get("forward")
        if isinstance(fused, DecodingAttention | DecodingLayer | FusedRecurrent):
            module.forward = fused.plain  # not the class's: a recurrent module's is bound to the step
    tables: dict[int, Tensor] = {}  # by where they lay packed: an output head may share one
    for path, module in list(model.named_modules()):
        packed: Any = getattr(module, "packed", None)
        if isinstance(module, PackedLinear):
            weight = tables.get(packed.data_ptr())
            if weight is None:
                weight = unpack(packed, module.out_features, module.in_features, module.format)
            model.set_submodule(path, _linear(weight, module.bias, dtype))
        elif isinstance(module, PackedEmbedding):
            embedding = _embedding(module)
            tables[packed.data_ptr()] = embedding.weight
            model.set_submodule(path, embedding)
        elif isinstance(module, SharedLatents):
            model.set_submodule(path, _linear(module.heads.up, None, dtype))
        elif isinstance(module, FusedRMSNorm | FusedRouter | FusedActivation | FusedGate):
            plain: Any = module.plain
            model.set_submodule(path, plain.__self__)


def _embedding(module: PackedEmbedding) -> Any:
    """The module that a packed one took the place of, with its table decoded."""
    table = torch.empty(module.num_embeddings, module.embedding_dim, dtype=module.dtype)
    for rows in torch.split(torch.arange(len(table)), ROWS):
        table[rows] = module.rows(rows)
    plain: Any = module.plain
    embedding = plain.__self__
    embedding.weight = nn.Parameter(table, requires_grad=False)
    if module.embed_scale is not None:
        embedding.embed_scale = module.embed_scale
    return embedding


def _linear(weight: Tensor, bias: Any, dtype: torch.dtype) -> nn.Linear:
    rows, columns = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(columns, rows, bias=bias is not None, dtype=dtype)
    shared = isinstance(weight, nn.Parameter)
    linear.weight = weight if shared else nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
