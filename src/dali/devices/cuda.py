"""A CUDA device, thin over torch.cuda: the only file that names it.

- The compute stream is the framework's current one, so its kernels and ours queue up without waits. The
  host stream is one worker thread. Every other stream is a CUDA stream of its own.
- A launch on a CUDA stream queues kernels and returns, and so does a copy from pinned memory. Copies from
  other host memory pass through a bounded ring of pinned chunks, which the caller fills; copies to it block
  the caller.
- What a launch on a CUDA stream runs queues kernels on device memory; host memory is for copies and the
  host stream.
- CUDA cannot wait for a thread: the caller waits, at launch, for a host operation that a CUDA stream
  depends on.

Not covered: several GPUs at once, peer copies. Written without a GPU; the tests marked `gpu` say what it
must do.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

from dali.devices.base import Buffer, Device
from dali.devices.dependencies import COMPUTE, HOST, Dependencies, Operation, Stream
from dali.errors import DaliError, parameter

RESERVE = 512 * 2**20  # bytes left to the framework: activations, library workspaces, fragmentation
CHUNK, CHUNKS = 4 * 2**20, 4  # the staging ring, bytes and number


class StagingRing:
    """Pinned chunks on the way from pageable memory to the device, each refilled once its copy has ended."""

    def __init__(self, chunks: list[torch.Tensor]) -> None:
        self._chunks = chunks
        self._events: list[Any] = [None] * len(chunks)
        self._next = 0

    def copy(self, raw: Any, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy on `raw`, the current CUDA stream; `source` may change once this returns."""
        size = len(self._chunks[0])
        for start in range(0, len(source), size):
            turn, self._next = self._next, (self._next + 1) % len(self._chunks)
            if self._events[turn] is not None:
                self._events[turn].synchronize()
            piece = source[start : start + size]
            chunk = self._chunks[turn][: len(piece)]
            chunk.copy_(piece)
            target[start : start + size].copy_(chunk, non_blocking=True)
            self._events[turn] = raw.record_event()


class CudaDevice(Device):
    """`name`: "cuda" or "cuda:N". `budget`: bytes; by default, and at most, the memory free now less RESERVE.

    `cuda` stands in for torch.cuda in tests.
    """

    def __init__(
        self,
        name: str = "cuda",
        budget: int | None = None,
        *,
        dependencies: Dependencies | None = None,
        cuda: Any = torch.cuda,
    ) -> None:
        if not cuda.is_available():
            raise DaliError(
                f"Device {name!r} was asked for, but torch finds no CUDA device.",
                f"Install a CUDA build of torch and a driver, or use {parameter('device')} cpu.",
            )
        index = torch.device(name).index or 0
        if index >= cuda.device_count():
            raise DaliError(
                f"Device {name!r} was asked for, but there are {cuda.device_count()} CUDA devices.",
                "Count from cuda:0.",
            )
        self._cuda = cuda
        self._device = torch.device(torch.device(name).type, index)
        free = max(0, cuda.mem_get_info(self._device)[0] - RESERVE)
        super().__init__(name, free if budget is None else min(budget, free), dependencies)
        self._raw: dict[Stream, Any] = {self.stream(COMPUTE): cuda.current_stream(self._device)}
        self._worker = ThreadPoolExecutor(1)
        self._pinned: set[int] = set()
        self._warned = False
        self._ring = self._make_ring()

    def stream(self, name: str) -> Stream:
        stream = super().stream(name)
        if name not in (COMPUTE, HOST) and stream not in self._raw:
            self._raw[stream] = self._cuda.Stream(self._device)
        return stream

    def pin(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer, runtime = storage.data_ptr(), self._cuda.cudart()
        if pointer in self._pinned:
            return
        if int(runtime.cudaHostRegister(pointer, storage.nbytes(), 0)) != 0:
            # The refusal stays CUDA's last error and the next kernel is blamed: let a throw-away one be.
            with suppress(RuntimeError):
                torch.ones(1, device=self._device)
            self._warn(storage.nbytes())
            return
        self._pinned.add(pointer)
        weakref.finalize(storage, _unpin, runtime, self._pinned, pointer).atexit = False

    def adopt(self, tensor: torch.Tensor) -> Buffer:
        buffer = super().adopt(tensor)
        fresh = buffer.key not in self._allocations and not self._dependencies.before((), (buffer.key,))
        if fresh and self._holds(tensor):
            # The framework's kernels that fill it may still be queued: mark the place after them.
            compute = self.stream(COMPUTE)
            current = self._cuda.current_stream(self._device)
            if current != self._raw[compute]:
                self._raw[compute].wait_event(current.record_event())
            self._issue(Operation(compute, "adopt", lambda: None), (), (buffer,))
        return buffer

    def release(self, buffer: Buffer) -> torch.Tensor:
        if self._failure is not None or not self._holds(buffer.tensor):
            return super().release(buffer)
        current = self._cuda.current_stream(self._device)
        dependencies = self._dependencies
        for operation in dependencies.before((), (buffer.key,)):
            raw = self._raw.get(operation.stream)
            if raw is None:
                self._await(operation)
            elif raw != current and operation.handle is not None:
                current.wait_event(operation.handle)
        dependencies.forget((buffer.key,))
        self._raise_failure()
        return buffer.tensor

    def _holds(self, tensor: torch.Tensor) -> bool:
        return tensor.device == self._device

    def _memory(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def _issue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        if operation.sides and operation.stream in self._raw:
            near = [{one.key for one in side if not self._holds(one.tensor)} for side in (reads, writes)]
            if all(near) or not self._pinned.issuperset(near[0] | near[1]):
                # The caller's own thread will touch this memory, and no event holds that back.
                for earlier in self._dependencies.before(near[0], near[1]):
                    self._await(earlier)
        super()._issue(operation, reads, writes)

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        raw = self._raw.get(operation.stream)
        if raw is None:
            operation.handle = self._worker.submit(self._execute, operation)
            return
        with self._cuda.stream(raw):
            self._execute(operation)
        try:
            operation.handle = raw.record_event()
        except RuntimeError as error:
            self._fail(operation, error)

    def _order(self, operation: Operation, earlier: Operation) -> None:
        raw = self._raw.get(operation.stream)
        if raw is None or isinstance(earlier.handle, Future):
            self._finish(earlier)
        elif earlier.handle is not None:
            raw.wait_event(earlier.handle)

    def _finish(self, operation: Operation) -> None:
        if isinstance(operation.handle, Future):
            operation.handle.result()
            return
        place = operation.handle or self._raw.get(operation.stream)  # no event where Ctrl-C came before it
        try:
            if place is not None:
                place.synchronize()
        except RuntimeError as error:  # kernels fail when they run, not when they are launched
            self._fail(operation, error)

    def _poll(self, operation: Operation) -> bool:
        if isinstance(operation.handle, Future):
            return operation.handle.done()
        try:
            return operation.handle is None or bool(operation.handle.query())
        except RuntimeError:
            return True  # the wait that follows says what is wrong

    def _transfer(self, stream: Stream, target: torch.Tensor, source: torch.Tensor) -> None:
        raw = self._raw.get(stream)
        inward = self._holds(target) and not self._holds(source)
        staged = inward and source.untyped_storage().data_ptr() not in self._pinned
        if raw is not None and staged and self._ring is not None:
            self._ring.copy(raw, *(side.view(-1).view(torch.uint8) for side in (target, source)))
        else:
            target.copy_(source, non_blocking=raw is not None)

    def _make_ring(self) -> StagingRing | None:
        try:
            chunks = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(CHUNKS)]
        except RuntimeError:
            self._warn(CHUNK * CHUNKS)
            return None
        return StagingRing(chunks)

    def _warn(self, nbytes: int) -> None:
        if not self._warned:
            print(
                f"dali: could not page-lock {nbytes} bytes for {self.name}: copies to it are slower. "
                "Raise the limit on locked memory (`ulimit -l`) or free RAM.",
                file=sys.stderr,
            )
        self._warned = True


def _unpin(runtime: Any, pinned: set[int], pointer: int) -> None:
    pinned.discard(pointer)
    runtime.cudaHostUnregister(pointer)


def device_names() -> list[str]:
    """The CUDA devices torch finds, as `--device` takes them."""
    return [
        f"cuda:{index}  {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
