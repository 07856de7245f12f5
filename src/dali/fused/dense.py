"""A model's dense modules on the native kernels: packed linears, fused norms and routers.

Modules are told by what they are, not by the family they come from: every `nn.Linear` but routers and a few rows' worth of
gates, every RMSNorm and router whose output on a probe is the plain formula's. Whatever else a model has stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dali.hooks import seam
from dali.kernels import native
from dali.kernels.formats import TILE_ROWS, Format, round_up
from dali.kernels.packing import pack
from dali.store.arena import Arena

PACKED_ROWS = 1024  # at a time: what packing needs beside the matrices stays small
Routed = tuple[Tensor, Tensor, Tensor]  # logits, weights, ids, as routers answer

ROUTED_TOKENS = 8  # beyond, the model's own matrix product is faster
PROBED_TOKENS, TELLING_TOKENS = 128, 16
FEWEST_ROWS = TILE_ROWS  # fewer are a shared expert's gate and such: nothing to gain


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

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, float(norm.variance_epsilon)
        self._plain = norm.forward

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype:
            return self._plain(x)  # type: ignore[no-any-return]
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


def put_linears(model: nn.Module, matrices: Mapping[str, tuple[Tensor, Format]]) -> None:
    """Replace linears, by path, by ones of these packed matrices."""
    for path, (packed, format) in matrices.items():
        linear: Any = model.get_submodule(path)
        model.set_submodule(path, PackedLinear(packed, linear, format))


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
        if type(module) is nn.Linear and module.out_features >= FEWEST_ROWS and path not in routers
    }


def fuse_norms(model: nn.Module) -> None:
    """Replace every RMSNorm by the fused one."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm") and _is_plain(child):
                setattr(parent, name, FusedRMSNorm(child))


class FusedRouter(nn.Module):
    """A router that takes the largest of a softmax. A few tokens go through one call, more through the model's own."""

    def __init__(self, router: Any, top_k: int, normalise: bool, weights_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = router.weight
        self._plain, self.how = router.forward, (top_k, normalise, weights_dtype)

    def forward(self, hidden: Tensor) -> Routed:
        x = hidden.reshape(-1, hidden.shape[-1])
        if len(x) > ROUTED_TOKENS or x.dtype != self.weight.dtype:
            return self._plain(hidden)  # type: ignore[no-any-return]
        return native.route(x, self.weight, *self.how)


def fuse_routers(model: nn.Module) -> None:
    """Replace every router that is a linear, a softmax and its largest, as a probe tells, by the fused one."""
    for name in seam.experts_modules(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        for label, router in list(parent.named_children()):
            if label in seam.ROUTERS and (fused := _fused_router(router)) is not None:
                setattr(parent, label, fused)


@torch.inference_mode()
def _fused_router(router: Any) -> FusedRouter | None:
    if [name for name, _ in router.named_parameters()] != ["weight"] or list(router.buffers()):
        return None
    weight: Tensor = router.weight
    if weight.dim() != 2 or weight.dtype not in native.ROUTED_DTYPES or not _is_plain_memory(weight):
        return None
    probe = torch.randn(PROBED_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(
        weight.dtype
    )
    try:
        logits, weights, ids = router(probe)
    except (TypeError, ValueError):  # it wants more than the gate input, or says something else
        return None
    for normalise in (False, True):
        fused = FusedRouter(router, ids.shape[1], normalise, weights.dtype)
        ours = native.route(probe, weight.detach(), ids.shape[1], normalise, weights.dtype)
        if (ours[0].shape, ours[0].dtype) != (logits.shape, logits.dtype):
            return None
        close = max(4 * torch.finfo(weight.dtype).eps, 1e-5)
        same = torch.allclose(ours[0], logits, rtol=0, atol=close * float(logits.abs().amax()))
        if same and _agree((logits, weights, ids), ours, close):
            return fused
    return None


def _is_plain_memory(weight: Tensor) -> bool:
    """Whether compiled kernels can read a weight where it lies."""
    return weight.device.type == "cpu" and weight.is_contiguous()


def _agree(expected: Routed, ours: Routed, close: float) -> bool:
    """Whether both give each expert the same weight. Tokens whose last choice the logits' difference may turn cannot tell."""
    logits, top_k = expected[0].float(), expected[1].shape[1]
    if top_k == logits.shape[1]:
        return False
    last = logits.sort(descending=True).values[:, top_k - 1 : top_k + 1]
    telling = last[:, 0] - last[:, 1] > 2 * (ours[0].float() - logits).abs().amax()
    theirs, mine = (
        torch.zeros_like(logits).scatter(1, i, w.float())[telling] for _, w, i in (expected, ours)
    )
    return int(telling.sum()) >= TELLING_TOKENS and torch.allclose(theirs, mine, rtol=close, atol=close / 4)


@torch.inference_mode()
def _is_plain(norm: nn.Module) -> bool:
    """Whether a norm's parameters and its output on a probe are those of the plain formula."""
    names = {name for name, _ in norm.named_parameters()}
    if names != {"weight"} or not hasattr(norm, "variance_epsilon"):
        return False
    weight: Any = norm.weight
    if weight.dim() != 1 or not _is_plain_memory(weight):
        return False
    probe = torch.linspace(-3, 5, weight.numel()).to(weight.dtype)[None]
    expected: Tensor = norm(probe)
    ours = native.rms_norm(probe, weight.detach(), float(norm.variance_epsilon))  # type: ignore[arg-type]
    tolerance = max(
        torch.finfo(weight.dtype).eps, 4 * torch.finfo(torch.float32).eps
    )  # sums taken in another order
    return expected.dtype == ours.dtype and torch.allclose(ours, expected, rtol=tolerance, atol=tolerance)
