"""A model's dense modules, and whole layers of it, on the native kernels."""

from __future__ import annotations

from typing import Any

from dali.fused import attention, dense, layer
from dali.fused.model import DecodingModel, fuse_model
from dali.kernels.formats import get_format


def fuse(model: Any, quantized: bool) -> DecodingModel | None:
    """Put all of a CPU model that can be on the native kernels; returns its way to decode in one call, if it has one.

    quantized: its experts are, and then its linears are packed to w8, too. Each step builds on those before: attention is told
    by packed linears and fused norms, a layer by its attention and router, a model by its layers.
    """
    if quantized:
        dense.pack_linears(model, get_format("w8"))
    dense.fuse_norms(model)
    dense.fuse_routers(model)
    attention.fuse_attention(model)
    layer.fuse_layers(model)
    return fuse_model(model)
