"""A model's dense modules on the native kernels: packed linears and fused norms.

Modules are told by what they are, not by the family they come from: every `nn.Linear` but routers and a few rows' worth of
gates, every RMSNorm whose output on a probe is the plain formula's. Whatever else a model has stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.embedding import PackedEmbedding
from dali.fused.probe import REFUSALS
from dali.hooks import seam
from dali.kernels import native
from dali.kernels.formats import TILE_ROWS, Format, round_up
from dali.kernels.packing import pack
from dali.store.arena import Arena

LINEARS = "w8"  # what linears are packed in beside quantized experts, where their file has nothing better
PACKED_ROWS = 1024  # at a time: what packing needs beside the matrices stays small
FEWEST_ROWS = TILE_ROWS  # fewer are a shared expert's gate and such: nothing to gain


VALUE_NORM = "v_norm"  # of attention: without a weight, of each head's values


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weights are packed; activations of any float type come back as they came."""

    def __init__(self, packed: Tensor, linear: nn.Linear, format: Format) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = linear.in_features, linear.out_features, format
        bias = None if linear.bias is None else linear.bias.detach().to(torch.float32)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.native = native.Linear(packed, linear.out_features, linear.in_features, format, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.native(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format.name}"


class FusedRMSNorm(nn.Module):
    """A root-mean-square norm in one call."""

    def __init__(self, norm: Any, weight: Tensor, dtype: torch.dtype) -> None:
        """`weight`: what it multiplies by, the norm's own, one more than that, or ones; `dtype`: of what it norms."""
        super().__init__()
        self.dtype = dtype
        self.variance_epsilon = epsilon_of(norm)
        if weight is getattr(norm, "weight", None):
            self.weight = weight
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.plain = norm.forward

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.dtype:
            return self.plain(x)  # type: ignore[no-any-return]
        return native.rms_norm(x, self.weight, self.variance_epsilon)


def pack_linears(model: nn.Module, format: Format) -> None:
    """Replace the model's linears by packed ones; a matrix is freed as soon as it is packed, unless embeddings share it.

    DaliError for weights that `format` cannot hold.
    """
    linears = linears_of(model)
    sizes = [format.matrix_bytes(linear.out_features, linear.in_features) for linear in linears.values()]
    memory = Arena(1, round_up(sum(sizes), 4096))[0]
    begin = 0
    for (path, linear), size in zip(linears.items(), sizes, strict=True):
        packed = memory[begin : begin + size]
        begin += size
        _pack(linear.weight, packed, format)
        del linear.weight
        model.set_submodule(path, PackedLinear(packed, linear, format))


def put_packed(model: nn.Module, matrices: Mapping[str, tuple[Tensor, Format]], dtype: torch.dtype) -> None:
    """Replace linears and embeddings, by path, by ones of these packed matrices; embeddings come as `dtype`."""
    for path, (packed, format) in matrices.items():
        plain: Any = model.get_submodule(path)
        embeds = isinstance(plain, nn.Embedding)
        put = PackedEmbedding(packed, plain, format, dtype) if embeds else PackedLinear(packed, plain, format)
        model.set_submodule(path, put)


def _pack(weight: Tensor, packed: Tensor, format: Format) -> None:
    tile_bytes = format.tile_bytes(weight.shape[1])
    for first in range(0, len(weight), PACKED_ROWS):
        piece = pack(weight[first : first + PACKED_ROWS], format)
        at = first // TILE_ROWS * tile_bytes
        packed[at : at + piece.nbytes] = piece


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Path -> linear of each to pack. Routers stay exact: choices and their predictions depend on them."""
    routers = {
        f"{name.rpartition('.')[0]}.{router}"
        for name in seam.experts_modules(model)
        for router in seam.ROUTERS
    }
    return {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Linear
        and module.out_features >= FEWEST_ROWS
        and not any(f"{path}.".startswith(f"{router}.") for router in routers)
    }


def is_plain_memory(weight: Tensor) -> bool:
    """Whether compiled kernels can read a weight where it lies."""
    return weight.device.type == "cpu" and weight.is_contiguous()


def fuse_norms(model: nn.Module) -> None:
    """Replace every RMSNorm by the fused one."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if not type(child).__name__.endswith("RMSNorm"):
                continue
            own: Any = getattr(child, "weight", None)
            if own is None and name == VALUE_NORM:
                of: Any = parent
                own = torch.ones(of.head_dim, dtype=of.config.dtype)
            if own is not None and (weight := _weight(child, own)) is not None:
                setattr(parent, name, FusedRMSNorm(child, weight, own.dtype))


def epsilon_of(norm: Any) -> float:
    """0 where there is none."""
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0)))


@torch.inference_mode()
def _weight(norm: Any, weight: Tensor) -> Tensor | None:
    """What a norm multiplies by, whose output on a probe is that of the plain formula with it: `weight`, its only parameter or
    ones where it has none, or one more than that, in float32."""
    if {name for name, _ in norm.named_parameters()} - {"weight"} or not epsilon_of(norm):
        return None
    if weight.dim() != 1 or not is_plain_memory(weight):
        return None
    probe = torch.linspace(-3, 5, weight.numel()).to(weight.dtype)[None]
    try:
        expected: Tensor = norm(probe)
    except REFUSALS:
        return None
    tolerance = max(
        torch.finfo(weight.dtype).eps, 4 * torch.finfo(torch.float32).eps
    )  # sums taken in another order
    for found in (weight, 1 + weight.detach().float()):
        ours = native.rms_norm(probe, found.detach(), epsilon_of(norm))
        if expected.dtype == ours.dtype and torch.allclose(ours, expected, rtol=tolerance, atol=tolerance):
            return found
    return None
