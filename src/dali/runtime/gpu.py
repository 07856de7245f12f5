"""The runtime over a GPU: plans as everywhere, and carries them out in native calls (src/native/gpu).

A layer's step waits for the GPU once, for its routing, which the GPU posts to the host's memory. Then the experts, the copies
they need and the fetches for later are queued in one call, which computes the CPU's experts meanwhile on the thread that calls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dali.devices.cuda import GpuSlots, gpu_errors
from dali.policies.plan import LayerPlan, ResidencyView
from dali.runtime.executor import Executor
from dali.telemetry import LayerCounters

Launch = tuple[list[int], list[int], bool]  # experts, their slots, whether they are fetched


@dataclass
class GpuStep:
    """What a layer's step asks of the native layers."""

    layer: int
    cpu: list[int]
    launches: list[Launch] = field(default_factory=list)


class GpuExecutor(Executor):
    """Runs the MoE layers of one model over a GPU."""

    device: GpuSlots
    most_tokens = 512  # of a step
    _posted: list[Tensor]  # what the GPU reads of the step under way must stay
    _cpu_seconds = 0.0  # of the CPU's experts, in the last step

    def run(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """As Executor.run; a step larger than the native layers were made for is cut."""
        if len(hidden) <= self.most_tokens:
            return super().run(layer, hidden, ids, weights)
        pieces = zip(*(torch.split(part, self.most_tokens) for part in (hidden, ids, weights)), strict=True)
        return torch.cat([super(GpuExecutor, self).run(layer, *piece) for piece in pieces])

    def _recover(self) -> None:
        self.device.asked.clear()
        self.device.layers.recover()
        super()._recover()  # fills the slots anew
        self.device.synchronize()

    def _tick(self, layer: int, counters: LayerCounters) -> float:
        now = time.perf_counter()
        self.period.start(layer, now)
        return now

    def _routing(
        self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor, predicted: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        device = self.device
        posted = [hidden.contiguous(), ids.long().contiguous(), weights.float().contiguous()]
        count = 0
        if predicted is not None:
            posted.append(predicted.contiguous())
            count = predicted.numel()
        self._posted = posted
        addresses = [tensor.data_ptr() for tensor in posted] + ([] if count else [0])
        with gpu_errors(device.name):
            device.layers.begin(layer, len(ids), *addresses, count, device.gpu.queue())
            routed, foreseen = device.layers.routing(ids.numel(), count)
        ahead = None if predicted is None else torch.tensor(foreseen).view(predicted.shape)
        return torch.tensor(routed).view(ids.shape), ahead

    def _queue(
        self,
        layer: int,
        hidden: Tensor,
        routed: Tensor,
        workload: list[int],
        plan: LayerPlan,
        view: ResidencyView,
    ) -> GpuStep:
        step = GpuStep(layer, list(plan.cpu))
        self._start_accelerator(step, plan, view)
        return step

    def _launch(self, step: Any, experts: Sequence[int], turn: int) -> int:
        device = self.device
        slots = [device.slot(buffer) for buffer in self.residency.slots(step.layer, experts)]
        fetches = [(step.layer, *each) for each in zip(experts, slots, strict=True)]
        fetched = fetches[0] in device.asked
        if fetched:  # they go before all others, with their launch
            device.asked = [asked for asked in device.asked if asked not in fetches]
        step.launches.append((list(experts), slots, fetched))
        return turn + len(experts)

    def _sum(self, step: Any, weights: Tensor, hidden: Tensor) -> Tensor:
        device = self.device
        out = torch.empty_like(self._posted[0])
        asked, device.asked = device.asked, []
        with gpu_errors(device.name):
            self._cpu_seconds = device.layers.execute(step.cpu, step.launches, asked, out.data_ptr())
        device.gpu.hand_over()
        return out

    def account(self, counters: LayerCounters, started: float) -> None:
        counters.seconds += time.perf_counter() - started
        counters.cpu_seconds += self._cpu_seconds
