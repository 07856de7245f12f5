"""Dense feed-forward networks, a layer's own and the experts shared by all tokens: their activations and gates in native calls,
which give a value the same bits wherever it stands, and what native code needs to compute them whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.fused.dense import PackedLinear, is_plain_memory
from dali.fused.probe import REFUSALS
from dali.hooks import seam
from dali.kernels import native
from dali.kernels.activation import PLAIN

ACTIVATIONS = ("act_fn", "activation")
# What modules call the linears of gate and up, or of both in one, and of down.
NAMES = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("input_linear",), "output_linear"),
    (("up_proj",), "down_proj"),
)
UNNAMED = {"w1", "w3", "w2"}  # LFM2's gate, up and down, whose activation is no module
SIGMOIDS = (torch.sigmoid, Tensor.sigmoid)
LIMITS = ("limit", "clip", "clamp")  # in a name: of an activation, that a probe may not reach


class FusedActivation(nn.Module):
    """An activation in one call."""

    def __init__(self, kind: str, module: nn.Module) -> None:
        super().__init__()
        self.kind, self.plain = kind, module.forward

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in native.ACTIVATED_DTYPES or x.device.type != "cpu":
            return self.plain(x)  # type: ignore[no-any-return]
        return native.activate(x, self.kind)


class GateLogits(Tensor):
    """What a gate answers: its sigmoid is native, as torch's has other bits by how many values there are."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function in SIGMOIDS and len(arguments) == 1 and not keywords:
            return native.sigmoid(arguments[0].as_subclass(Tensor))
        return super().__torch_function__(function, types, arguments, keywords or {})  # type: ignore[no-untyped-call]


class FusedGate(nn.Module):
    """A linear with one row, the sigmoid of which says how much of the shared expert a token gets."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.plain = linear.weight, linear.forward

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype:
            return self.plain(x)  # type: ignore[no-any-return]
        return native.gate_logits(x, self.weight).as_subclass(GateLogits)


class GatedMlp(nn.Module):
    """A dense network whose own module calls its activation as a function."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


def fuse_mlps(model: nn.Module) -> None:
    """Replace the activations of all dense networks that are known, and the gates of shared experts."""
    for path, module in list(model.named_modules()):
        if (named := _named(module)) is not None:
            model.set_submodule(path, named)
    for module in list(model.modules()):
        if _linears(module) is None:
            continue
        for name in ACTIVATIONS:
            if (kind := _kind(getattr(module, name, None))) is not None:
                setattr(module, name, FusedActivation(kind, getattr(module, name)))
    for path in seam.experts_modules(model):
        parent = model.get_submodule(path.rpartition(".")[0])
        for name, child in list(parent.named_children()):
            if _is_gate(child):
                setattr(parent, name, FusedGate(child))


@torch.inference_mode()
def _named(module: Any) -> GatedMlp | None:
    """The same network with its parts named, if it is one without and gives the same bits."""
    parts = dict(module.named_children())
    if set(parts) != UNNAMED or not all(isinstance(part, PackedLinear) for part in parts.values()):
        return None
    named = GatedMlp(module.w1, module.w3, module.w2)
    try:
        probe = torch.linspace(-3, 5, module.w1.in_features)[None]
        return named if torch.equal(named(probe), module(probe)) else None
    except REFUSALS:
        return None


def _is_gate(module: Any) -> bool:
    return (
        type(module) is nn.Linear
        and module.out_features == 1
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and module.weight.dtype in native.ROUTED_DTYPES
        and is_plain_memory(module.weight)
    )


def mlp_of(module: Any) -> native.Mlp | None:
    """A module as native code computes it: packed linears and a fused activation, nothing else."""
    linears = _linears(module)
    activation = next((getattr(module, name) for name in ACTIVATIONS if hasattr(module, name)), None)
    if linears is None or not isinstance(activation, FusedActivation) or list(module.parameters()):
        return None
    if len(list(module.children())) != len(linears) + 1 or _limited(module):
        return None
    *first, down = (linear.native for linear in linears)
    rows = sum(linear.rows for linear in first)
    if rows != 2 * down.columns and (rows != down.columns or len(first) > 1):
        return None
    return native.Mlp(first, down, activation.kind)


def _linears(module: Any) -> list[PackedLinear] | None:
    """The packed linears of a network, down last; one without a gate has one before it."""
    for first, down in NAMES:
        linears = [getattr(module, name, None) for name in (*first, down)]
        if all(isinstance(linear, PackedLinear) for linear in linears):
            return linears  # type: ignore[return-value]
    return None


def _limited(module: Any) -> bool:
    return any(limit in name and bool(value) for name, value in vars(module).items() for limit in LIMITS)


@torch.inference_mode()
def _kind(activation: Any) -> str | None:
    """Which activation a module is, by its values on a probe."""
    if not isinstance(activation, nn.Module) or any(True for _ in activation.parameters()):
        return None
    probe = torch.linspace(-30, 30, 4096)
    try:
        expected = activation(probe)
        return next(
            (k for k, act in PLAIN.items() if torch.allclose(act(probe), expected, rtol=1e-5, atol=1e-7)),
            None,
        )
    except REFUSALS:
        return None
