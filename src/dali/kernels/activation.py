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
    """`kind` is one of `KINDS`. Those of `CLAMPED` have a gate, and clamp it and up at `limit`: `clamped_swiglu` is gpt-oss's,
    (up + 1) * gate * sigmoid(alpha * gate), `clamped_silu` DeepSeek-V4's, up * silu(gate)."""

    kind: str
    alpha: float = 0.0
    limit: float = 0.0

    def __call__(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """gate, up: [tokens, intermediate]; gate is None for experts without one."""
        if self.kind in CLAMPED:
            assert gate is not None
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            if self.kind == "clamped_silu":
                return F.silu(gate) * up
            return (up + 1) * gate * torch.sigmoid(gate * self.alpha)
        act = PLAIN[self.kind]
        return act(up) if gate is None else act(gate) * up


CLAMPED = ("clamped_swiglu", "clamped_silu")
KINDS = (*PLAIN, *CLAMPED)
