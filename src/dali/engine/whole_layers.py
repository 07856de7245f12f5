"""llama.cpp's --n-cpu-moe: the first MoE layers on the CPU, the others wholly on the accelerator."""

from __future__ import annotations

from dali.errors import UsageError
from dali.policies.cache import CachePolicy


class WholeLayers(CachePolicy):
    """The residents that go with policies.assign.layerwise: every expert of the layers from `cpu_layers` on, for good."""

    def __init__(self, layers: int, experts: int, cpu_layers: int) -> None:
        super().__init__(layers, experts, experts)
        self.cpu_layers = cpu_layers

    def initial(self, layer: int) -> tuple[int, ...]:
        return tuple(range(self.experts)) if layer >= self.cpu_layers else ()

    def check(self, slots: int, record_bytes: int, device: str) -> None:
        """UsageError where there are not so many layers, or the slots of `record_bytes` on the device do not hold the others."""
        if self.cpu_layers > self.layers:
            raise UsageError(
                f"--n-cpu-moe asks for {self.cpu_layers} layers on the CPU; the model has {self.layers} MoE layers.",
                f"Give at most {self.layers}.",
            )
        there, fit = self.layers - self.cpu_layers, slots // self.experts
        if fit < there:
            gibibytes = there * self.experts * record_bytes / 2**30
            raise UsageError(
                f"--n-cpu-moe {self.cpu_layers} leaves {there} MoE layers to {device}, {gibibytes:.2f} GiB of experts; it has "
                f"room for {fit} of them.",
                f"Give --n-cpu-moe {self.layers - fit} or more, or more --vram.",
            )
