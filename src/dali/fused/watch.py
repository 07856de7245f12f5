"""Whether modules that native code stands in for are still what they were."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as every_module


class Watch:
    """Watches modules that native code stands in for, with all inside them. It keeps the memory of their parameters and buffers,
    which that code reads."""

    def __init__(self, *roots: nn.Module) -> None:
        modules = [module for root in roots for module in root.modules()]
        self._hooks: list[Any] = [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]
        self._hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._made = [
            (m.__dict__, m.__dict__.get("forward"), m._modules, list(m._modules.values())) for m in modules
        ]
        held = [
            (tensors, name, tensor)
            for m in modules
            for tensors in (m._parameters, m._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._tensors = [(*place, place[2].data_ptr()) for place in held]
        self._memory = [tensor.detach() for _, _, tensor in held]

    @property
    def untouched(self) -> bool:
        """Whether no hook looks on, and the modules, what they run and the memory of their parameters and
        buffers still are what they were: `model.to(...)` and `parameter.data = ...` put that elsewhere."""
        if any(self._hooks):
            return False
        for attributes, forward, modules, children in self._made:
            if attributes.get("forward") is not forward or list(modules.values()) != children:
                return False
        for tensors, name, tensor, address in self._tensors:
            if tensors.get(name) is not tensor or tensor.data_ptr() != address:
                return False
        return True
