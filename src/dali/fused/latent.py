"""Attention modules that keep latents in the place of all heads' keys and values.

A module is told by its parts and by a probe. To ask latents is to sum in another order than to make every head's keys of them, so
here both ways cannot give the same bits: they must agree within `CLOSE`, with weights that are not quantized. From then on every
step of the engine, with a prompt or without, attends so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import PackedLinear
from dali.fused.probe import POSITIONS, REFUSALS, probe
from dali.fused.rotation import kind_of, rotary_of, rotate
from dali.hooks.latent import LINEAR, SharedLatents
from dali.kernels import native
from dali.kernels.formats import FORMATS, Format, get_format
from dali.kernels.packing import unpack
from dali.store.gguf.pack import Losses

PARTS = {"kv_a_proj_with_mqa", "kv_a_layernorm", LINEAR, "o_proj"}
CLOSE = 1e-4  # difference to the largest value, where all is float32
ROUNDED = 3e-2  # where keys and values are rounded as they are made, or linears are packed


def keep_latents(model: nn.Module, format: Format | None, losses: Losses | None = None) -> None:
    """Let every attention module that can keep latents do so, with what makes keys and values of them packed in `format`, None:
    in the format of their weights. `losses` are told what that loses of linears which were packed already, measured on a head of
    each. DaliError for weights that `format` cannot hold."""
    rotary = rotary_of(model)
    for module in list(model.modules()) if rotary is not None else ():
        if not _known(module):
            continue
        up = _weights(getattr(module, LINEAR))
        if _agree(module, rotary, up):
            quantized = getattr(module, LINEAR)
            own = format is None or (isinstance(quantized, PackedLinear) and not quantized.format.quantized)
            chosen = _format_of(quantized) if own or format is None else format
            heads = _heads(module, up, chosen)
            if losses is not None and isinstance(quantized, PackedLinear):
                some = up[: len(up) // heads.heads]
                losses.kept(f"{quantized.format.name} to {chosen.name}", heads.first(), some)
            setattr(module, LINEAR, SharedLatents(heads))


def kept_widths(model: nn.Module) -> list[int]:
    """Of every attention module that by its parts can keep latents: values of a token's, with what is rotated."""
    known: list[Any] = [module for module in model.modules() if _known(module)]
    return [getattr(module, LINEAR).in_features + module.qk_rope_head_dim for module in known]


def _known(module: Any) -> bool:
    """Whether a module has the parts of attention to latents."""
    parts = dict(module.named_children())
    linear = parts.get(LINEAR)
    return (
        parts.keys() >= PARTS
        and all(isinstance(getattr(module, width, None), int) for width in ("qk_rope_head_dim", "v_head_dim"))
        and (type(linear) is nn.Linear or isinstance(linear, PackedLinear))
        and linear.bias is None
    )


def _weights(linear: Any) -> Tensor:
    if isinstance(linear, PackedLinear):
        packed: Any = linear.packed
        return unpack(packed, linear.out_features, linear.in_features, linear.format)
    return linear.weight.detach().float()  # type: ignore[no-any-return]


def _format_of(linear: Any) -> Format:
    """What holds a linear's values: one of a byte a value for those that are quantized, as columns are rows here."""
    if isinstance(linear, PackedLinear):
        return get_format("w8") if linear.format.quantized else linear.format
    return next(format for format in FORMATS.values() if format.dtype == linear.weight.dtype)


def _heads(module: Any, up: Tensor, format: Format) -> native.LatentHeads:
    heads = module.o_proj.in_features // module.v_head_dim
    return native.LatentHeads(up, heads, len(up) // heads - module.v_head_dim, module.v_head_dim, format)


@torch.inference_mode()
def _agree(module: Any, rotary: Any, up: Tensor) -> bool:
    """Whether both ways agree on a probe."""
    linear, kind = getattr(module, LINEAR), kind_of(rotary, module)
    dtype = module.config.dtype
    exact = dtype == torch.float32 and type(linear) is nn.Linear
    generator = torch.Generator().manual_seed(0)
    hidden = module.kv_a_proj_with_mqa.in_features

    def call(at: int) -> Any:
        positions = torch.tensor([POSITIONS[at]])
        x = torch.randn(1, len(POSITIONS[at]), hidden, generator=generator.manual_seed(at)).to(dtype)
        rotation = rotate(rotary, x, positions, kind)
        return module(
            hidden_states=x, position_embeddings=rotation, attention_mask=None, position_ids=positions
        )[0]

    try:
        expected = probe(call)[: len(POSITIONS)]
        setattr(module, LINEAR, SharedLatents(_heads(module, up, get_format("f32"))))
        found = probe(call)[: len(POSITIONS)]
    except REFUSALS:
        return False
    finally:
        setattr(module, LINEAR, linear)
    return all(
        float((one - other).abs().max()) <= (CLOSE if exact else ROUNDED) * float(one.abs().max())
        for one, other in zip(expected, found, strict=True)
    )
