"""What the CPU computes of a layer's step, on the host stream of a device whose operations are queued one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dali.devices import HOST, Device
from dali.hardware.cost import CostModel
from dali.kernels.expert import ExpertLayout
from dali.runtime.layer_step import Staged, Step
from dali.runtime.loans import Loans
from dali.runtime.workspace import Workspace

CPU = torch.device("cpu")
DOWN, UP = "down", "up"  # streams of activations, so that they never queue behind experts

Kernel = Callable[[ExpertLayout, Sequence[Tensor], Sequence[int], Tensor, Tensor, Tensor], None]


class HostExperts:
    """The CPU's experts, with the activations' way down to them and up again."""

    def __init__(
        self, device: Device, loans: Loans, workspace: Workspace, costs: CostModel, kernel: Kernel
    ) -> None:
        self._device, self._loans, self._workspace, self._kernel = device, loans, workspace, kernel
        self._activation_copy = cache(costs.activation_copy)
        self._costs, self._call = costs.costs.cpu, costs.costs.call
        self._host, self._down, self._up = (device.stream(name) for name in (HOST, DOWN, UP))

    def stage(self, step: Step, experts: int) -> Staged:
        """Queue the activations' way down, for the CPU's experts, the first so many; where their outputs go."""
        hidden, take = step.x.tensor, self._workspace.take
        tokens, width = hidden.shape
        count = step.offsets[experts]
        below = take("below", tokens, width, hidden.dtype, CPU)
        packed = take("packed", count, width, torch.float32, CPU)
        above = take("above", count, width, torch.float32, hidden.device)
        seconds = self._activation_copy(tokens)
        self._device.copy(self._down, below, step.x, seconds, label="activations down")
        return Staged(step.pairs[:count], below, packed, above)

    def start(self, step: Step, experts: Sequence[int]) -> None:
        """Queue the next of the CPU's experts as one call on the host stream."""
        device, kernel, staged = self._device, self._kernel, step.staged
        assert staged is not None
        lease = self._loans.lease(step.layer, experts)
        offsets = step.offsets[step.computed : step.computed + len(experts) + 1]
        step.computed += len(experts)
        begin, end = offsets[0], offsets[-1]
        mine, into = step.pairs[begin:end], staged.packed.tensor[begin:end]
        shape = len(step.pairs), staged.packed.tensor.shape[1]
        offsets = [offset - begin for offset in offsets]
        layout, records, below = lease.layout, lease.records, staged.below

        def compute() -> None:
            full = torch.empty(shape)
            kernel(layout, records, offsets, mine, below.tensor, full)
            torch.index_select(full, 0, mine, out=into)

        seconds = self._call + sum([self._costs[step.workload[expert]] for expert in experts])
        read: list[Any] = [device.adopt(record) for record in records] if self._loans.pool.bounded else []
        device.launch(
            self._host, compute, (below, *read), (staged.packed,), seconds, label=f"cpu {step.layer}"
        )
        self._loans.lend(lease, device.mark(self._host))

    def bring_up(self, staged: Staged) -> None:
        """Queue the outputs' way up."""
        seconds = self._activation_copy(len(staged.pairs))
        self._device.copy(self._up, staged.rows, staged.packed, seconds, label="activations up")
