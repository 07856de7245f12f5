"""The CUDA device: against a stand-in for torch.cuda that logs every call, and on a GPU if there is one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings

import dali
from dali.devices import CudaDevice, OutOfDeviceMemoryError
from dali.devices.cuda import CHUNK, CHUNKS, RESERVE, StagingRing
from dali.errors import DaliError
from devices.programs import Program, in_order, programs, run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


class FakeEvent:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.error: str | None = None

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for {self.name}")
        if self.error is not None:
            raise RuntimeError(self.error)

    def query(self) -> bool:
        if self.error is not None:
            raise RuntimeError(self.error)
        return self.name in self.cuda.reached


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.recorded = 0

    def record_event(self) -> FakeEvent:
        self.recorded += 1
        event = FakeEvent(self.cuda, f"{self.name}.{self.recorded}")
        self.cuda.log.append(f"record {event.name}")
        return event

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for all of {self.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(f"{self.name} waits for {event.name}")


class FakeCuda:
    """Events are named after their stream and counted: "compute.2" is the second recorded on compute."""

    def __init__(self, *, free: int = 2**30, refuses_to_pin: bool = False) -> None:
        self.log: list[str] = []
        self.reached: set[str] = set()
        self.free = free
        self.current = self.framework = FakeStream(self, "framework")
        self.others = 0
        self.registered: set[int] = set()
        self.refuses_to_pin = refuses_to_pin

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, 2 * self.free

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current

    def Stream(self, device: torch.device) -> FakeStream:
        self.others += 1
        return FakeStream(self, f"stream{self.others}")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def cudart(self) -> SimpleNamespace:
        def register(pointer: int, nbytes: int, flags: int) -> int:
            self.registered |= set() if self.refuses_to_pin else {pointer}
            return int(self.refuses_to_pin)

        return SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=self.registered.discard)


class FakeDevice(CudaDevice):
    """Its memory is the CPU's: what it allocated, and tensors named in `here`."""

    def __init__(self, cuda: FakeCuda, budget: int | None = None) -> None:
        self.here: set[int] = set()
        super().__init__("cpu", budget, cuda=cuda)

    def _holds(self, tensor: torch.Tensor) -> bool:
        pointer = tensor.untyped_storage().data_ptr()
        return pointer in self.here or pointer in self._allocations

    def place(self, *shape: int) -> torch.Tensor:
        tensor = torch.zeros(*shape)
        self.here.add(tensor.untyped_storage().data_ptr())
        return tensor


class Story:
    """A fake device and its log of calls; "stream1" is the copy stream."""

    def __init__(self, **options: bool | int) -> None:
        self.cuda = FakeCuda(**options)
        self.device = FakeDevice(self.cuda)
        self.compute, self.copy, self.host = map(self.device.stream, ("compute", "copy", "host"))

    def kernel(self, label: str) -> object:
        return lambda: self.cuda.log.append(f"{label} on {self.cuda.current.name}")

    def tell(self) -> list[str]:
        told, self.cuda.log[:] = list(self.cuda.log), []
        return told


@pytest.fixture
def story(capsys: pytest.CaptureFixture[str]) -> Story:
    """Without a GPU the ring cannot be pinned, which the device says at once."""
    return Story()


def pinned(story: Story, *shape: int) -> torch.Tensor:
    tensor = torch.ones(*shape)
    story.device.pin(tensor)
    return tensor


def test_an_expert_waits_for_its_copy_and_the_next_copy_for_the_expert(story: Story) -> None:
    device = story.device
    first, second = device.alloc(32).split(16)
    weights = device.adopt(pinned(story, 4))
    device.copy(story.copy, first, weights)
    device.copy(story.copy, second, weights)
    device.launch(story.compute, story.kernel("expert 1"), [first], [])
    device.launch(story.compute, story.kernel("expert 2"), [second], [])
    device.copy(story.copy, first, weights)
    assert story.tell() == [
        "record stream1.1",
        "record stream1.2",
        "framework waits for stream1.1",
        "expert 1 on framework",
        "record framework.1",
        "framework waits for stream1.2",
        "expert 2 on framework",
        "record framework.2",
        "stream1 waits for framework.1",
        "record stream1.3",
    ]


def test_kernels_are_launched_on_the_stream_they_name(story: Story) -> None:
    story.device.launch(story.copy, story.kernel("gather"), [], [])
    story.device.launch(story.device.stream("side"), story.kernel("norm"), [], [])
    assert story.tell() == ["gather on stream1", "record stream1.1", "norm on stream2", "record stream2.1"]
    assert story.cuda.current is story.cuda.framework


def test_the_host_stream_is_a_thread_that_waits_for_events(story: Story) -> None:
    device, threads = story.device, []
    rows = device.adopt(torch.zeros(4))
    device.launch(story.copy, story.kernel("fetch activations"), [], [rows])
    device.launch(story.host, lambda: threads.append(threading.get_ident()), [rows], [])
    device.synchronize(device.mark(story.host))
    assert story.tell() == ["fetch activations on stream1", "record stream1.1", "host waits for stream1.1"]
    assert threads != [threading.get_ident()]


def test_a_device_operation_waits_at_launch_for_a_host_one(story: Story) -> None:
    device, go = story.device, threading.Event()
    rows = device.adopt(torch.zeros(4))
    cpu = story.kernel("cpu experts")
    device.launch(story.host, lambda: (go.wait(30), cpu()), [], [rows])
    threading.Timer(0.01, go.set).start()
    device.launch(story.compute, story.kernel("join"), [rows], [])
    assert story.tell() == ["cpu experts on framework", "join on framework", "record framework.1"]


def test_an_adopted_tensor_is_ready_once_the_frameworks_kernels_are(story: Story) -> None:
    device = story.device
    hidden = device.adopt(device.place(4))
    device.launch(story.compute, story.kernel("expert"), [hidden], [])
    device.launch(story.copy, story.kernel("fetch activations"), [hidden], [])
    assert device.adopt(hidden.tensor).key == hidden.key  # still adopted: no second mark
    assert story.tell() == [
        "record framework.1",
        "expert on framework",
        "record framework.2",
        "stream1 waits for framework.1",
        "fetch activations on stream1",
        "record stream1.1",
    ]


def test_a_tensor_adopted_and_released_on_another_stream_of_the_framework(story: Story) -> None:
    device = story.device
    side = FakeStream(story.cuda, "side")
    with story.cuda.stream(side):
        hidden = device.adopt(device.place(4))
        device.launch(story.compute, story.kernel("expert"), [hidden], [])
        device.release(hidden)
    assert story.tell() == [
        "record side.1",
        "framework waits for side.1",
        "record framework.1",
        "expert on framework",
        "record framework.2",
        "side waits for framework.2",
        "side waits for framework.1",
    ]


def test_release_makes_the_framework_wait_for_other_streams_only(story: Story) -> None:
    device = story.device
    hidden = device.adopt(device.place(4))
    device.launch(story.compute, story.kernel("expert"), [hidden], [])
    device.launch(story.copy, story.kernel("fetch activations"), [hidden], [])
    story.tell()
    assert device.release(hidden) is hidden.tensor
    assert story.tell() == ["framework waits for stream1.1"]
    device.release(hidden)
    assert story.tell() == []


def test_release_waits_for_the_host_stream(story: Story) -> None:
    hidden, go, log = story.device.adopt(story.device.place(4)), threading.Event(), []
    story.device.launch(story.host, lambda: (go.wait(30), log.append("cpu experts")), [hidden], [])
    threading.Timer(0.01, go.set).start()
    story.device.release(hidden)
    assert log == ["cpu experts"]


def test_release_of_host_memory_makes_the_host_wait(story: Story) -> None:
    rows = story.device.adopt(torch.zeros(4))
    story.device.launch(story.copy, story.kernel("fetch"), [], [rows])
    story.tell()
    story.device.release(rows)
    assert story.tell() == ["host waits for stream1.1"]


def test_synchronize_waits_for_the_end_of_every_stream(story: Story) -> None:
    for _ in range(2):
        story.device.launch(story.compute, story.kernel("expert"), [], [])
        story.device.launch(story.copy, story.kernel("fetch"), [], [])
    story.tell()
    story.device.synchronize()
    assert story.tell() == ["host waits for framework.2", "host waits for stream1.2"]


def test_done_asks_and_does_not_wait(story: Story) -> None:
    device = story.device
    device.launch(story.copy, story.kernel("fetch"), [], [])
    event = device.mark(story.copy)
    story.tell()
    assert not device.done(event)
    assert story.tell() == []
    story.cuda.reached.add("stream1.1")
    assert device.done(event)


@pytest.mark.parametrize("ask", ["synchronize", "done"])
def test_a_kernel_that_fails_later_surfaces_at_the_wait(story: Story, ask: str) -> None:
    device = story.device
    device.launch(story.compute, story.kernel("expert"), [], [], label="expert")
    event = device.mark(story.compute)
    event.operation.handle.error = "an illegal memory access was encountered"
    with pytest.raises(
        DaliError, match=r"'expert' on stream 'compute' of cpu failed: .*illegal memory access"
    ):
        getattr(device, ask)(event)


def test_an_error_at_launch_surfaces_at_the_wait_once_the_stream_is_empty(story: Story) -> None:
    def boom() -> None:
        raise ValueError("boom")

    story.device.launch(story.compute, boom, [], [])
    story.device.launch(story.compute, story.kernel("lost"), [], [])
    assert story.tell() == ["record framework.1", "record framework.2"]
    with pytest.raises(DaliError, match="boom"):
        story.device.release(story.device.adopt(story.device.place(1)))
    assert story.tell() == ["record framework.3", "host waits for framework.3", "host waits for framework.3"]
    story.device.synchronize()


def test_ctrl_c_in_a_launch_leaves_a_stream_that_can_be_waited_for(story: Story) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.device.launch(story.compute, interrupted, [], [])
    with pytest.raises(DaliError, match="KeyboardInterrupt"):
        story.device.synchronize()
    assert set(story.tell()) == {"host waits for all of framework"}


def test_the_budget_is_what_is_free_less_the_reserve() -> None:
    assert FakeDevice(FakeCuda(free=RESERVE + 1000)).budget == 1000
    assert FakeDevice(FakeCuda(free=RESERVE + 1000), budget=10).budget == 10
    assert FakeDevice(FakeCuda(free=RESERVE + 1000), budget=2000).budget == 1000
    assert FakeDevice(FakeCuda(free=RESERVE - 1)).budget == 0


def test_torchs_out_of_memory_is_ours(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(nbytes: int) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"Tried to allocate {nbytes} bytes")

    monkeypatch.setattr(story.device, "_memory", full)
    with pytest.raises(
        OutOfDeviceMemoryError, match="cpu cannot allocate 64 bytes: Tried to allocate 64 bytes"
    ):
        story.device.alloc(64)
    assert story.device.used == 0


def test_memory_stays_pinned_while_its_storage_lives(story: Story) -> None:
    arena = torch.ones(8)
    pointer = arena.data_ptr()
    story.device.pin(arena[4:])
    story.device.pin(arena)  # the same storage: nothing to do
    rest = arena[2:4]
    del arena
    gc.collect()
    assert story.cuda.registered == {pointer}
    del rest
    gc.collect()
    assert story.cuda.registered == set()


def test_a_refusal_to_pin_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story(refuses_to_pin=True)
    said = capsys.readouterr().err
    assert said.startswith(
        f"dali: could not page-lock {CHUNK * CHUNKS} bytes for cpu: copies to it are slower. "
    )
    weights = pinned(story, 4)
    assert capsys.readouterr().err == ""
    slot = story.device.alloc(16)
    story.device.copy(story.copy, slot, story.device.adopt(weights))
    assert slot.tensor.view(torch.float32).tolist() == [1] * 4


def ring_of(story: Story, chunks: int, size: int) -> None:
    story.device._ring = StagingRing([torch.zeros(size, dtype=torch.uint8) for _ in range(chunks)])


def test_pageable_memory_goes_through_the_ring_and_refills_a_chunk_once_it_has_left(story: Story) -> None:
    ring_of(story, chunks=2, size=4)
    source = torch.arange(10, dtype=torch.uint8)
    slot = story.device.alloc(10)
    story.device.copy(story.copy, slot, story.device.adopt(source))
    assert slot.tensor.tolist() == source.tolist()
    assert story.tell() == [
        "record stream1.1",
        "record stream1.2",
        "host waits for stream1.1",
        "record stream1.3",
        "record stream1.4",  # the copy as a whole
    ]
    story.device.copy(story.copy, slot, story.device.adopt(source[:3]))
    assert story.tell() == ["host waits for stream1.2", "record stream1.5", "record stream1.6"]


def test_pinned_memory_and_copies_back_skip_the_ring(story: Story) -> None:
    ring_of(story, chunks=2, size=4)
    device, slot, out = story.device, story.device.alloc(16), torch.zeros(4)
    device.copy(story.copy, slot, device.adopt(pinned(story, 4)))
    device.copy(story.copy, device.adopt(out), slot)
    assert story.tell() == ["record stream1.1", "record stream1.2"]
    assert out.tolist() == [1] * 4


def test_host_memory_that_the_caller_reads_is_waited_for(story: Story) -> None:
    """A copy back into pageable memory, then a copy of it: no event can hold the caller's thread back."""
    ring_of(story, chunks=1, size=16)
    device, slot, rows = story.device, story.device.alloc(16), story.device.adopt(torch.zeros(4))
    device.launch(story.compute, lambda: slot.tensor.fill_(1), [], [slot])
    device.copy(story.copy, rows, slot)
    device.copy(story.copy, slot, rows)
    assert story.tell() == [
        "record framework.1",
        "stream1 waits for framework.1",
        "record stream1.1",
        "host waits for stream1.1",
        "record stream1.2",
        "record stream1.3",
    ]
    device.copy(
        story.compute, device.adopt(pinned(story, 4)), rows
    )  # between host buffers, at once: it has waited
    assert story.tell() == ["record framework.2"]


def test_a_copy_between_pinned_buffers_runs_on_the_callers_thread(story: Story) -> None:
    device, slot = story.device, story.device.alloc(16)
    one, other = device.adopt(pinned(story, 4)), device.adopt(pinned(story, 4))
    device.copy(story.copy, one, slot)
    device.copy(story.copy, other, one)
    assert story.tell() == ["record stream1.1", "host waits for stream1.1", "record stream1.2"]


def test_without_cuda_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DaliError) as caught:
        CudaDevice("cuda:1")
    assert caught.value.problem == "Device 'cuda:1' was asked for, but torch finds no CUDA device."
    assert "device cpu" in caught.value.fix


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DaliError, match="'cuda:3' was asked for, but there are 1 CUDA devices"):
        CudaDevice("cuda:3", cuda=FakeCuda())


def test_torch_cuda_is_named_in_one_file_only() -> None:
    root = Path(dali.__file__).parent
    naming = [path.relative_to(root) for path in root.rglob("*.py") if "torch.cuda" in path.read_text()]
    assert naming == [Path("devices/cuda.py")]


@pytest.mark.gpu
@needs_gpu
@settings(deadline=None, max_examples=100)
@given(programs)
def test_gpu_computes_what_program_order_does(program: Program) -> None:
    """All in device memory: a kernel may not touch the host's, nor the host stream the device's."""
    device = CudaDevice(budget=2**20)
    assert run(device, program, place="cuda") == in_order(program, empty=0)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("page_locked", [True, False])
def test_gpu_copies_arrive_whole(page_locked: bool) -> None:
    device = CudaDevice(budget=2**26)
    source = torch.randint(256, (2**25 + 4096,), dtype=torch.uint8)
    back = torch.zeros_like(source)
    if page_locked:
        device.pin(source)
        device.pin(back)
    slot, copy = device.alloc(len(source)), device.stream("copy")
    device.copy(copy, slot, device.adopt(source))
    device.launch(device.stream("compute"), lambda: slot.tensor.bitwise_not_(), [slot], [slot])
    target = device.adopt(back)
    device.copy(copy, target, slot)
    assert torch.equal(~device.release(target), source)


@pytest.mark.gpu
@needs_gpu
def test_gpu_host_stream_joins_the_compute_stream() -> None:
    device = CudaDevice(budget=2**20)
    hidden = torch.ones(256, 256, device="cuda") @ torch.ones(256, 256, device="cuda")
    received, rows = torch.zeros(256, 256), torch.zeros(256, 256)
    activations, inputs, outputs = map(device.adopt, (hidden, received, rows))
    device.copy(device.stream("copy"), inputs, activations)
    device.launch(device.stream("host"), lambda: rows.copy_(received + 1), [inputs], [outputs])
    device.copy(device.stream("compute"), activations, outputs)
    assert (device.release(activations) == 257).all().item()


@pytest.mark.gpu
@needs_gpu
def test_gpu_budget_and_memory_shortage() -> None:
    device = CudaDevice()
    assert 0 < device.budget <= torch.cuda.mem_get_info()[0]
    device.budget = 2**62
    with pytest.raises(OutOfDeviceMemoryError, match="cannot allocate"):
        device.alloc(2**60)
    device.free(device.alloc(2**20))
    assert device.used == 0
