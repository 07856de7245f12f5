"""llama.cpp's --n-cpu-moe: the first MoE layers on the CPU, the others wholly on the accelerator."""

from __future__ import annotations

from dali.errors import UsageError, parameter
from dali.policies.cache import CachePolicy
from dali.units import enough, size


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
                f"{parameter('n_cpu_moe')} {self.cpu_layers} is more than the {self.layers} MoE layers of the model.",
                f"Give at most {self.layers}.",
            )
        there, fit = self.layers - self.cpu_layers, slots // self.experts
        if fit < there:
            layers, room = f"{there} MoE layers", f"room for {fit} of them"
            if there == 1:
                layers, room = "1 MoE layer", "no room for it"
            nbytes = there * self.experts * record_bytes
            raise UsageError(
                f"{parameter('n_cpu_moe')} {self.cpu_layers} leaves {layers} to {device}, {size(nbytes)} of "
                f"experts; it has {room}.",
                f"Give {parameter('n_cpu_moe')} {self.layers - fit} or more, or {parameter('vram')} {enough(nbytes)} "
                "where there is as much.",
            )
