"""Shared experts beside the routed ones (DeepSeek-V2, Qwen2-MoE): computed while the routed experts are on their way.

The model calls them after its routed experts, which have been waited for by then. So the layer runs them itself, on the same
input, right after it queued the routed work, and the model's own call is answered with that result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

NAMES = ("shared_experts", "shared_expert")


class EarlyShared:
    """Takes the place of a shared-experts module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self._forward: Any = module.forward
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        module.forward = self

    def start(self, hidden: Tensor) -> None:
        """Run the shared experts on `hidden` [tokens, hidden], the input of the layer's routed experts."""
        self._input, self._output = hidden, self._forward(hidden)

    def __call__(self, hidden: Tensor) -> Tensor:
        """The early result if `hidden` is that very input, in whatever shape; else the module's own answer."""
        early, output = self._input, self._output
        self._input = self._output = None
        if (
            early is None
            or output is None
            or early.data_ptr() != hidden.data_ptr()
            or early.numel() != hidden.numel()
        ):
            result: Tensor = self._forward(hidden)
            return result
        return output.view(*hidden.shape[:-1], output.shape[-1])


def early_shared(model: nn.Module, experts: str) -> Callable[[Tensor], None] | None:
    """Wrap the shared experts that stand beside the experts module at path `experts`; returns what starts them, if any."""
    parent = model.get_submodule(experts.rpartition(".")[0])
    for name in NAMES:
        if (module := getattr(parent, name, None)) is not None:
            return EarlyShared(module).start
    return None
