"""The CPU as a device: production on any machine.

The compute and host streams share the caller's cores, so overlapping them gains nothing: they run at
launch, on the caller's thread. Any other stream (copies, reads from disk) waits for something else than
cores and has a worker thread of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from dali.devices.base import Buffer, Device, host_memory
from dali.devices.dependencies import COMPUTE, HOST, Dependencies, Operation, Stream


class CpuDevice(Device):
    """`budget`: bytes of RAM it may hand out."""

    def __init__(self, budget: int, *, dependencies: Dependencies | None = None) -> None:
        super().__init__("cpu", budget, dependencies)
        self._workers: dict[Stream, ThreadPoolExecutor] = {}

    def _memory(self, nbytes: int) -> torch.Tensor:
        return host_memory(nbytes)

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        stream = operation.stream
        if stream.name in (COMPUTE, HOST):
            self._execute(operation)
            return
        if stream not in self._workers:
            self._workers[stream] = ThreadPoolExecutor(1)
        operation.handle = self._workers[stream].submit(self._execute, operation)

    def _finish(self, operation: Operation) -> None:
        if operation.handle is not None:
            operation.handle.result()

    def _poll(self, operation: Operation) -> bool:
        return operation.handle is None or operation.handle.done()
