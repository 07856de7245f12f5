"""NVIDIA's GPUs: the only file that names torch.cuda.

torch computes a model's dense part there. Experts are the native layers' (src/native/gpu), which use the same context and queue,
so that what either queues comes after what the other has. Steps are carried out as a whole (runtime/gpu.py): what residency asks
of the slots meanwhile is collected here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from dali.compiled import library
from dali.devices.base import Buffer, Device, Event, MisuseError, OutOfDeviceMemoryError
from dali.devices.clock import Span
from dali.devices.dependencies import COMPUTE, HOST, Operation, Stream
from dali.errors import DaliError, parameter

Fetch = tuple[int, int, int]  # layer, expert, slot
STREAMS = {"dense": COMPUTE, "experts": COMPUTE, "join": COMPUTE, "copy": "copy", "cpu": HOST}
OLDEST_DRIVER = 12000  # as the driver numbers CUDA's versions
LEAST_SM = 75  # compute capability: integer tensor cores


@contextmanager
def gpu_errors(name: str) -> Iterator[None]:
    """What the driver says, as a DaliError."""
    try:
        yield
    except library.GpuFailure as error:
        raise gpu_error(name, error) from error


def gpu_error(name: str, failure: Exception) -> DaliError:
    """A failure of the driver, as users are told; an OutOfDeviceMemoryError where it is one."""
    problem = f"{name} failed ({failure})."
    if "OUT_OF_MEMORY" in str(failure):
        fix = f"Close other programs that use it, or lower {parameter('ctx_size')} or {parameter('vram')}."
        return OutOfDeviceMemoryError(problem, fix)
    return DaliError(problem, f"Try again; if it repeats, restart dali, or use {parameter('device')} cpu.")


class Gpu:
    """One GPU, as `device` names it: "cuda" or "cuda:N". DaliError where it cannot be used, with the reason."""

    def __init__(self, device: str, driver: str = "") -> None:
        """`driver`: another library than the system's."""
        self.device = device
        self.place = self._torch_device()
        try:
            self.native = library.GpuDevice(driver, self.place.index or 0)
            name, self.sm, version = self.native.name, self.native.sm, self.native.driver_version
        except library.GpuFailure as error:
            raise DaliError(
                f"Device {device!r} cannot be used: {error}.",
                f"Install or update NVIDIA's driver, or use {parameter('device')} cpu.",
            ) from error
        self.name = f"{device} ({name})"
        if version < OLDEST_DRIVER:
            raise DaliError(
                f"The driver of {self.name} is for CUDA {version // 1000}.{version % 1000 // 10}, and dali needs "
                f"{OLDEST_DRIVER // 1000}.",
                f"Update NVIDIA's driver, or use {parameter('device')} cpu.",
            )
        if self.sm < LEAST_SM:
            raise DaliError(
                f"{self.name} has compute capability {self.sm / 10}, and dali needs {LEAST_SM / 10} (RTX 20, GTX 16 or newer).",
                f"Use another GPU, or {parameter('device')} cpu.",
            )

    def _torch_device(self) -> torch.device:
        if not torch.cuda.is_available():
            raise DaliError(
                f"Device {self.device!r} was asked for, but torch finds no CUDA device.",
                f"Install a CUDA build of torch and a driver, or use {parameter('device')} cpu.",
            )
        index, count = torch.device(self.device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise DaliError(
                f"Device {self.device!r} was asked for, but there are {count} CUDA devices.",
                "Count from cuda:0.",
            )
        return torch.device("cuda", index)

    def queue(self) -> int:
        """The queue that torch's work is in, by its address."""
        return int(torch.cuda.current_stream(self.place).cuda_stream)

    def free_bytes(self) -> int:
        """Memory that is free now, what torch keeps for later and could give back included."""
        torch.cuda.empty_cache()
        return self.memory()[0]

    def memory(self) -> tuple[int, int]:
        """Bytes of its memory, those free and all."""
        with gpu_errors(self.name):
            free, everything = self.native.memory()
        return free, everything

    def wait(self) -> None:
        """Until all that was queued is over."""
        torch.cuda.synchronize(self.place)

    def hand_over(self) -> None:
        """torch may use, and free, what the native layers have queued work for: both are in one queue, by whose order its
        allocator goes."""


class GpuSlots(Device):
    """The slots in which the native layers keep experts, as residency sees them: at most `budget` bytes of them."""

    def __init__(self, gpu: Gpu, make: Callable[[int], Any], slot_bytes: int, budget: int) -> None:
        """`make(slots)`: the native layers (library.GpuLayers) with so many slots."""
        super().__init__(gpu.name, budget, None)
        self.gpu = gpu
        self.slot_bytes = slot_bytes
        self.asked: list[Fetch] = []
        self._copies = 0  # that were ever asked for, or since the last failure
        self.unpinned = 0  # bytes of experts that could not be page-locked
        self._make = make
        self._slots = 0
        self._pinned: dict[int, Any] = {}  # by the storage's address

    @cached_property
    def layers(self) -> Any:
        """Made when the number of slots is known. DaliError where the GPU lacks the memory."""
        with gpu_errors(self.name):
            return self._make(self._slots)

    def pin(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if address not in self._pinned:
            self._pinned[address] = None  # asked once: layers share their memory
            try:
                self._pinned[address] = library.gpu_register(self.gpu.native, address, nbytes)
            except library.GpuFailure:  # copies then pass through the driver's own buffers
                self.unpinned += nbytes

    def close(self) -> None:
        """Give the memory back, page-locked memory included."""
        self.__dict__.pop("layers", None)
        self._pinned.clear()

    def slot(self, buffer: Buffer) -> int:
        """The number that `layers` knows a slot by."""
        return buffer.key // self.slot_bytes

    def fetch(
        self,
        stream: Stream,
        layer: int,
        experts: Sequence[int],
        slots: Sequence[Buffer],
        records: Sequence[Tensor],
        modelled_seconds: float,
        contended_seconds: float,
    ) -> Event:
        self.asked += [(layer, expert, self.slot(slot)) for expert, slot in zip(experts, slots, strict=True)]
        self._copies += len(experts)
        return Landing(None, self._copies)

    def done(self, event: Event) -> bool:
        assert isinstance(event, Landing)
        with gpu_errors(self.name):
            landed: int = self.layers.landed()
        return landed >= event.copies

    def synchronize(self, event: Event | None = None) -> None:
        """Carry out what was asked for, while no step runs."""
        asked, self.asked = self.asked, []
        self.place(asked)

    def place(self, fetches: list[Fetch]) -> None:
        """Copy experts into slots while no step runs."""
        with gpu_errors(self.name):
            self.layers.place(fetches)

    def watch(self) -> None:
        with gpu_errors(self.name):
            self.layers.watch(True)

    def spans(self, wait: bool = False) -> list[Span]:
        """As measured: by events in the queues; of the CPU's experts, by the host's clock. Labels name layer and experts, as in
        "experts 3.7,9"; "dense 3" is all that the model computes between two layers' experts."""
        with gpu_errors(self.name):
            spans = self.layers.spans(wait)
        return [
            Span(
                STREAMS[work],
                f"{work} {layer}" + (f".{','.join(map(str, experts))}" if experts else ""),
                begin,
                end,
            )
            for work, layer, experts, begin, end in spans
        ]

    def recover(self) -> None:
        """After a failure: wait until the queues are empty, and forget what was asked for."""
        self.asked.clear()
        self._copies = 0
        with gpu_errors(self.name):
            self.layers.recover()

    def alloc(self, nbytes: int) -> Buffer:
        """The slots. Executors that take turns have the same ones, the later no more than the first."""
        if "layers" in self.__dict__ and nbytes <= self.used:
            again = Buffer(torch.empty(nbytes, dtype=torch.uint8, device="meta"), 0)
            again.allocated = True
            return again
        return super().alloc(nbytes)

    def _memory(self, nbytes: int) -> Tensor:
        self._slots = nbytes // self.slot_bytes
        _ = self.layers
        return torch.empty(
            nbytes, dtype=torch.uint8, device="meta"
        )  # `layers` has it: buffers only tell slots apart

    # Single operations are other devices': a GPU's steps are queued as a whole.

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        self._finish(operation)

    def _finish(self, operation: Operation) -> NoReturn:
        raise MisuseError(
            f"{operation} was queued by itself on {self.name}, whose steps are queued as a whole."
        )

    def _poll(self, operation: Operation) -> bool:
        self._finish(operation)


@dataclass(slots=True)
class Landing(Event):
    """The end of the first so many copies."""

    copies: int


def device_names() -> list[str]:
    """The CUDA devices torch finds, as `--device` takes them."""
    return [
        f"cuda:{index}  {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
