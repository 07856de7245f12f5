"""Taking `fuse` back: a model whose modules are torch's own again, for a device that native code on the CPU does not serve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.attention import DecodingAttention
from dali.fused.dense import FusedRMSNorm, PackedLinear
from dali.fused.layer import DecodingLayer
from dali.fused.mlp import FusedActivation, FusedGate
from dali.fused.recurrent import FusedRecurrent
from dali.fused.router import FusedRouter
from dali.hooks.latent import SharedLatents
from dali.kernels.packing import unpack


def release(model: Any) -> None:
    """Put back every module that native code took the place of. Linears keep the values that they were packed in, in the model's
    own dtype."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), DecodingAttention | DecodingLayer | FusedRecurrent):
            del module.forward
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            packed: Any = module.packed
            weight = unpack(packed, module.out_features, module.in_features, module.format)
            model.set_submodule(path, _linear(weight, module.bias, dtype))
        elif isinstance(module, SharedLatents):
            model.set_submodule(path, _linear(module.heads.up, None, dtype))
        elif isinstance(module, FusedRMSNorm | FusedRouter | FusedActivation | FusedGate):
            plain: Any = module.plain
            model.set_submodule(path, plain.__self__)


def _linear(weight: Tensor, bias: Any, dtype: torch.dtype) -> nn.Linear:
    rows, columns = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(columns, rows, bias=bias is not None, dtype=dtype)
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
