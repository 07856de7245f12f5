"""The size of a model's dense part, and how long it and predictions take on an accelerator, as modelled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from dali.fused.dense import PackedLinear
from dali.hardware.cost import CostModel


def dense_size(model: Any) -> tuple[int, int, int]:
    """Bytes and number of all dense weights but the embeddings, unpacked as an accelerator has them, and one kernel a
    leaf module."""
    embeddings = model.get_input_embeddings()
    nbytes = count = kernels = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            size = module.in_features * module.out_features
            nbytes, count, kernels = nbytes + size * embeddings.weight.itemsize, count + size, kernels + 1
        elif module is not embeddings:  # a tied output layer still counts
            weights = [p for p in module._parameters.values() if p is not None]
            nbytes += sum(p.nbytes for p in weights)
            count += sum(p.numel() for p in weights)
            kernels += bool(weights) and not module._modules
    return nbytes, count, kernels


def dense_seconds(model: Any, costs: CostModel, layers: int) -> Callable[[int], float]:
    """tokens -> modelled seconds of a layer's dense part: all of it spread over the MoE layers."""
    nbytes, count, kernels = dense_size(model)
    return costs.dense_seconds(nbytes // layers, count // layers, kernels // layers)


def predict_seconds(
    routers: Sequence[nn.Module] | None, costs: CostModel, depth: int = 1
) -> Callable[[int], float]:
    """tokens -> modelled seconds of predicting `depth` layers: each one kernel over a router's weights, which a ridge map equals
    in size."""
    weights = list(routers[0].parameters()) if routers else []
    nbytes, count = sum(p.nbytes for p in weights), sum(p.numel() for p in weights)
    return functools.cache(lambda tokens: depth * costs.dense(nbytes, count, tokens, kernels=1))
