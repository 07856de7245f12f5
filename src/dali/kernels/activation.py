"""The gate of an expert: hidden = act(gate) * up, or act(up) for experts without a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


@dataclass(frozen=True)
class Activation:
    """`kind` is one of `KINDS`. `clamped_swiglu` is gpt-oss's: gate and up clamped at `limit`,
    (up + 1) * gate * sigmoid(alpha * gate)."""

    kind: str
    alpha: float = 0.0
    limit: float = 0.0

    def __call__(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """gate, up: [tokens, intermediate]; gate is None for experts without one."""
        if self.kind == "clamped_swiglu":
            assert gate is not None
            gate = gate.clamp(max=self.limit)
            return (up.clamp(-self.limit, self.limit) + 1) * gate * torch.sigmoid(gate * self.alpha)
        act = PLAIN[self.kind]
        return act(up) if gate is None else act(gate) * up


KINDS = (*PLAIN, "clamped_swiglu")
