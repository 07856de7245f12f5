"""Whether modules that native code stands in for are still what they were."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as every_module


class Watch:
    """Watches modules that native code stands in for, with all inside them. It keeps the memory of their parameters, which that
    code reads."""

    def __init__(self, *roots: nn.Module) -> None:
        modules = [module for root in roots for module in root.modules()]
        self._hooks: list[Any] = [every_module._global_forward_hooks, every_module._global_forward_pre_hooks]
        self._hooks += [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._made = [
            (m.__dict__, m.__dict__.get("forward"), m._modules, list(m._modules.values())) for m in modules
        ]
        held = [
            (m._parameters, name, p) for m in modules for name, p in m._parameters.items() if p is not None
        ]
        self._parameters = [(*place, place[2].data_ptr()) for place in held]
        self._memory = [parameter.detach() for _, _, parameter in held]

    @property
    def untouched(self) -> bool:
        """Whether no hook looks on, and the modules, what they run and their parameters' memory still are what they were:
        `model.to(...)` and `parameter.data = ...` put that elsewhere."""
        if any(self._hooks):
            return False
        for attributes, forward, modules, children in self._made:
            if attributes.get("forward") is not forward or list(modules.values()) != children:
                return False
        for parameters, name, parameter, address in self._parameters:
            if parameters.get(name) is not parameter or parameter.data_ptr() != address:
                return False
        return True
