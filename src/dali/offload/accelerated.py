"""A model's experts under the runtime of an accelerator and the CPU, as one value that an engine takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dali.engine.budget import StateBudget
from dali.hooks import seam
from dali.offload.gpu_model import GpuModel
from dali.policies.signals import Step
from dali.runtime.executor import Executor
from dali.runtime.gpu import GpuExecutor
from dali.runtime.prefetch import Predictor
from dali.step.decoder import Decoder
from dali.telemetry import Telemetry

ComputeExperts = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class AcceleratedExperts:
    """What computes the experts of each MoE layer, and what whoever steps the model must know of it."""

    executor: Executor
    layers: list[ComputeExperts]  # a MoE layer each: the executor's, or with lossy parts before them
    clock: Callable[[], float]  # the device's: modelled seconds, or a watch's
    begin: Callable[[Step], None] | None  # told of each forward step, for policies that tell requests apart
    embeddings: bool  # whether it is told the tokens' embeddings, too
    step_tokens: int  # of a prefill chunk
    modelled: bool  # whether times come from a virtual clock
    system: str | None = None  # whose policies run, where one was named
    budget: StateBudget | None = None  # of its memory, for what sequences keep; None: nobody counts it
    lossy: dict[str, Any] = field(
        default_factory=dict
    )  # its lossy "parts", and what they have done; none: all are off
    decoder: Decoder | None = (
        None  # computes whole steps, with the experts; then the model's layers stay the CPU's
    )
    predictor: Predictor | None = None  # by which it prefetches

    def resume(self) -> None:
        """After the turn of others over the same GPU: have its slots again, filled anew."""
        if isinstance(self.executor, GpuExecutor):
            self.executor.resume()
            if isinstance(self.decoder, GpuModel):
                self.decoder.follow(self.executor, self.predictor)

    def install(self, model: nn.Module, telemetry: Telemetry) -> None:
        """Take the place of the CPU's layers in `model`; `telemetry` begins anew."""
        telemetry.clear()
        telemetry.modelled = self.modelled
        if self.decoder is not None:
            return
        for module, layer in zip(seam.experts_modules(model).values(), self.layers, strict=True):
            seam.set_dali_layer(module, layer)
