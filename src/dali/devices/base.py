"""The device interface: memory within a budget, and queues whose order is derived.

Every launch and copy declares the buffers it reads and writes; what must wait for what follows from that.
Callers issue from one thread, in program order, and the outcome is that of running everything in that
order.

A failing operation cancels all that has not run yet, on every stream. The next call that asks or waits
(synchronize, done, release, free) raises the error, once; then the device is empty and usable, and what the
failed and cancelled operations would have written is undefined. The same holds after Ctrl-C inside an
operation. Ctrl-C while the host waits leaves the operations as they are, and the next wait takes up where
that one stopped.
"""

from __future__ import annotations

import mmap
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from dali.devices.dependencies import Dependencies, Operation, Sides, Stream
from dali.errors import DaliError

if TYPE_CHECKING:
    from dali.devices.clock import Span


class OutOfDeviceMemoryError(DaliError):
    """An allocation does not fit: ask for less."""


class MisuseError(DaliError):
    """A device was driven against its rules."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "This is a bug in dali: please report it with the command that showed it.")


@dataclass(slots=True)
class Event:
    """The point in a stream after its newest operation; None where there was none."""

    operation: Operation | None


class Buffer:
    """Memory that operations declare; buffers with the same `key` (their storage's address) count as one.

    `tensor` is the adopted tensor, or uint8 [nbytes] for memory of the device's own.
    """

    allocated = False
    usable = True  # neither freed nor cut into slots
    parts: Sequence[Buffer] = ()

    def __init__(self, tensor: torch.Tensor, key: int) -> None:
        self.tensor = tensor
        self.key = key
        self.nbytes = tensor.nbytes

    @cached_property
    def layout(self) -> tuple[torch.dtype, torch.Size]:
        return self.tensor.dtype, self.tensor.shape

    @cached_property
    def bytes(self) -> torch.Tensor:
        """The contents, uint8 [nbytes]; the tensor must be contiguous."""
        return self.tensor.view(-1).view(torch.uint8)

    def split(self, nbytes: int) -> Sequence[Buffer]:
        """Cut a fresh allocation, once, into slots of `nbytes`, each a buffer of its own.

        A rest stays unused. From then on the whole may only be freed, which frees its slots.
        """
        if not self.allocated or self.parts or not 0 < nbytes <= self.nbytes:
            raise MisuseError(f"A buffer of {self.nbytes} bytes cannot be cut into slots of {nbytes}.")
        starts = range(0, self.nbytes - nbytes + 1, nbytes)
        self.parts = [Buffer(self.tensor[start : start + nbytes], self.key + start) for start in starts]
        self.usable = False
        return self.parts


_usable, _key = attrgetter("usable"), attrgetter("key")


def _sides(dst: Buffer, src: Buffer) -> Sides:
    if dst.layout == src.layout:
        return dst.tensor, src.tensor
    if src.nbytes > dst.nbytes:
        raise MisuseError(f"A copy of {src.nbytes} bytes does not fit a buffer of {dst.nbytes}.")
    return dst.bytes[: src.nbytes], src.bytes


class Device(ABC):
    """One device: `name` as users write it, `budget` bytes to hand out, `used` bytes handed out."""

    def __init__(self, name: str, budget: int, dependencies: Dependencies | None) -> None:
        self.name = name
        self.budget = budget
        self.used = 0
        self._dependencies = dependencies or Dependencies()
        self._streams: dict[str, Stream] = {}
        self._allocations: dict[int, Buffer] = {}  # by key
        self._failure: tuple[Operation, BaseException] | None = None

    # Memory

    def alloc(self, nbytes: int) -> Buffer:
        """Device memory of undefined contents. Raises OutOfDeviceMemoryError where it does not fit."""
        if nbytes <= 0:
            raise MisuseError(f"{nbytes} bytes of {self.name} were asked for.")
        try:
            if self.used + nbytes > self.budget:
                raise MemoryError(f"{self.used} of its {self.budget} bytes are in use")
            tensor = self._memory(nbytes)
        except (MemoryError, OSError, OverflowError, RuntimeError) as error:
            raise OutOfDeviceMemoryError(
                f"{self.name} cannot allocate {nbytes} bytes: {error}.",
                "Ask for fewer expert slots, or leave the device more memory.",
            ) from error
        self.used += nbytes
        buffer = Buffer(tensor, tensor.data_ptr())
        buffer.allocated = True
        self._allocations[buffer.key] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Return an allocation, after waiting for the operations on it; also when one of these failed."""
        if self._allocations.get(buffer.key) is not buffer:
            raise MisuseError(f"A buffer of {buffer.nbytes} bytes is no live allocation of {self.name}.")
        try:
            self._settle([piece.key for piece in buffer.parts or [buffer]])
        finally:
            for piece in (buffer, *buffer.parts):
                piece.usable, piece.tensor = False, piece.tensor.new_empty(0)
                piece.__dict__.pop("bytes", None)
            self.used -= buffer.nbytes
            del self._allocations[buffer.key]

    def close(self) -> None:  # noqa: B027 (only some devices hold what Python does not free by itself)
        """Give back what the device holds beside allocations."""

    def pin(self, tensor: torch.Tensor) -> None:  # noqa: B027 (only some devices have use for the hint)
        """Page-lock a tensor's whole storage for as long as it lives, as copies will use it often: a hint."""

    def adopt(self, tensor: torch.Tensor) -> Buffer:
        """A tensor of the framework's (torch's) as it is now; until `release`, only operations change it."""
        key = tensor.untyped_storage().data_ptr()
        if key in self._allocations and not self._allocations[key].usable:
            raise MisuseError(f"Memory that {self.name} has cut into slots was adopted as a whole.")
        return Buffer(tensor, key)

    def release(self, buffer: Buffer) -> torch.Tensor:
        """Give the tensor back: what torch or the host does next comes after every operation on it so far."""
        self._settle((buffer.key,))
        return buffer.tensor

    # Time

    def now(self) -> float:
        """Seconds on the host's clock; the simulator's is virtual, so its seconds are modelled."""
        return time.perf_counter()

    def charge(self, stream: Stream, modelled_seconds: float, label: str) -> None:  # noqa: B027 (real time passes)
        """Let what the framework does outside of launches take modelled time; only the simulator heeds it."""

    def busy_seconds(self) -> dict[str, float]:
        """Seconds each stream was busy since the last call; {} where nothing measures it."""
        return {}

    def watch(self) -> None:  # noqa: B027 (only some devices tell)
        """From now on tell by `spans` what the streams do."""

    def spans(self, wait: bool = False) -> list[Span]:
        """What has ended since `watch` or the last call; with `wait` that which is under way, too. [] where nothing tells."""
        return []

    # Queues

    def stream(self, name: str) -> Stream:
        """The queue of that name: "compute", "copy", "host" (the CPU counts as a stream), or another."""
        if name not in self._streams:
            self._streams[name] = Stream(name, len(self._streams))
        return self._streams[name]

    def launch(
        self,
        stream: Stream,
        fn: Callable[[], object],
        reads: Sequence[Buffer],
        writes: Sequence[Buffer],
        modelled_seconds: float = 0.0,
        *,
        label: str = "launch",
    ) -> None:
        """Queue `fn()`, which touches exactly these buffers.

        It runs at once or later, on any thread, in inference mode. `modelled_seconds` is for the simulator.
        """
        self._issue(Operation(stream, label, fn, (modelled_seconds, modelled_seconds)), reads, writes)

    def copy(
        self,
        stream: Stream,
        dst: Buffer,
        src: Buffer,
        modelled_seconds: float = 0.0,
        contended_seconds: float | None = None,
        *,
        label: str = "copy",
    ) -> None:
        """Queue a copy of all bytes of `src` to the front of `dst`; both are contiguous.

        `contended_seconds` is what it would take if the host stream computed all the while; None: the same.
        """
        contended = modelled_seconds if contended_seconds is None else contended_seconds
        self.copies(stream, (dst,), (src,), modelled_seconds, contended, label=label)

    def copies(
        self,
        stream: Stream,
        targets: Sequence[Buffer],
        sources: Sequence[Buffer],
        modelled_seconds: float,
        contended_seconds: float,
        *,
        label: str,
    ) -> None:
        """Queue copies, one after another, as one operation; the seconds are those of all."""
        sides = list(map(_sides, targets, sources))
        fn = partial(self._transfer_all, stream, sides)
        operation = Operation(stream, label, fn, (modelled_seconds, contended_seconds))
        operation.sides = sides
        self._issue(operation, sources, targets)

    def fetch(
        self,
        stream: Stream,
        layer: int,
        experts: Sequence[int],
        slots: Sequence[Buffer],
        records: Sequence[torch.Tensor],
        modelled_seconds: float,
        contended_seconds: float,
    ) -> Event:
        """Queue one copy of a MoE layer's experts, whose records these are, into slots; returns its end."""
        sources = [self.adopt(record) for record in records]
        label = f"copy {layer}.{experts[0]}"
        self.copies(stream, slots, sources, modelled_seconds, contended_seconds, label=label)
        return self.mark(stream)

    def mark(self, stream: Stream) -> Event:
        """The end of everything issued on the stream so far."""
        return Event(stream.tail)

    def synchronize(self, event: Event | None = None) -> None:
        """Block the host until the event, or until all queues are empty. Raises what an operation raised."""
        awaited = [stream.tail for stream in self._streams.values()] if event is None else [event.operation]
        for operation in awaited:
            self._await(operation)
        self._raise_failure()
        if event is not None and event.operation is not None and not event.operation.ran:
            raise MisuseError(
                f"{event.operation} was cancelled when an earlier operation of {self.name} failed."
            )

    def done(self, event: Event) -> bool:
        """Whether the event has come, without blocking. Raises as `synchronize` does."""
        operation = event.operation
        pending = operation is not None and operation.ran is not False and not self._poll(operation)
        if pending and self._failure is None:
            return False
        self.synchronize(event)
        return True

    # What each device provides

    @abstractmethod
    def _memory(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] on the device."""

    @abstractmethod
    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        """Arrange for `_execute(operation)` after its waits and its stream's earlier operations.

        Also while the device has failed: `_execute` cancels it in its turn.
        """

    @abstractmethod
    def _finish(self, operation: Operation) -> None:
        """Block until the operation has ended, well or not."""

    @abstractmethod
    def _poll(self, operation: Operation) -> bool:
        """Whether the operation has ended, well or not."""

    def _transfer_all(self, stream: Stream, sides: Sequence[Sides]) -> None:
        for target, source in sides:
            self._transfer(stream, target, source)

    def _transfer(self, stream: Stream, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def _order(self, operation: Operation, earlier: Operation) -> None:
        """Make an operation that is about to run come after one of another stream."""
        self._finish(earlier)

    # What they share

    def _issue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        if not (all(map(_usable, reads)) and all(map(_usable, writes))):
            raise MisuseError(f"{operation} touches a buffer that was freed or cut into slots.")
        self._dependencies.derive(operation, list(map(_key, reads)), list(map(_key, writes)))
        operation.stream.tail = operation
        self._enqueue(operation, reads, writes)

    def _execute(self, operation: Operation) -> None:
        """Run an operation on this thread, unless the device has failed meanwhile."""
        try:
            for earlier in operation.waits:
                self._order(operation, earlier)
            if self._failure is None and operation.fn is not None:
                with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
                    operation.fn()
                operation.finish(ran=True)
            else:
                operation.finish(ran=False)
        except BaseException as error:
            self._fail(operation, error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, operation: Operation, error: BaseException) -> None:
        operation.finish(ran=False)
        if self._failure is None:
            self._failure = operation, error

    def _await(self, operation: Operation | None) -> None:
        if operation is not None:
            self._finish(operation)
            self._dependencies.host_waited(operation)

    def _settle(self, keys: Collection[int]) -> None:
        """Wait for every operation on these buffers, and forget them."""
        dependencies = self._dependencies
        for operation in dependencies.before((), keys):
            self._await(operation)
        dependencies.forget(keys)
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise what went wrong, once nothing is left that could still run."""
        if self._failure is None:
            return
        for stream in self._streams.values():
            self._await(stream.tail)
            stream.tail = None
        (operation, error), self._failure = self._failure, None
        if isinstance(error, DaliError):
            raise error
        raise DaliError(
            f"{operation} of {self.name} failed: {error!r}.",
            "Run again with `-v` to see where; if it repeats, please report it.",
        ) from error


def host_memory(nbytes: int) -> torch.Tensor:
    """Page-aligned host memory, uint8 [nbytes] of zeros; the system provides pages as they are touched."""
    with torch.inference_mode(False):  # writable in either mode
        return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
