"""A model's dense modules, and whole layers of it, on the native kernels. `fuse` is the one door."""

from __future__ import annotations

from typing import Any

from dali.fused import attention, dense, latent, layer, mlp, recurrent, router
from dali.fused import model as whole
from dali.fused.model import DecodingModel
from dali.kernels.formats import Format
from dali.store.gguf.pack import Losses


def fuse(model: Any, linears: Format | None, losses: Losses | None = None) -> DecodingModel | None:
    """Let the compiled kernels stand in for every part of a CPU's model that they can, and pack its linears in `linears` (None:
    leave them as they are). Returns the model's way to decode in one call, if it has one. `losses` are told what is lost of
    linears that were packed already.

    The order is the only one: each step tells the parts it joins by what the steps before have made of them. DaliError for
    weights that `linears` cannot hold.
    """
    latent.keep_latents(model, linears, losses)  # while the weights still are what they were
    if linears is not None:
        dense.pack_linears(model, linears)
    dense.fuse_norms(model)
    router.fuse_routers(model)
    mlp.fuse_mlps(model)
    attention.fuse_attention(model)
    recurrent.fuse_recurrent(model)
    layer.fuse_layers(model)
    return whole.fuse_model(model)
