"""What holds on every device that runs here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.devices import Buffer, CpuDevice, Device, OutOfDeviceMemoryError, SimDevice
from dali.errors import DaliError

Make = Callable[[int], Device]
MAKERS: list[Make] = [CpuDevice, SimDevice, lambda budget: SimDevice(budget, seed=1)]


@pytest.fixture(params=MAKERS, ids=["cpu", "sim, eager", "sim, lazy"])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


def boom() -> None:
    raise ValueError("boom")


def test_the_budget_is_kept(make: Make) -> None:
    device = make(100)
    buffer = device.alloc(60)
    with pytest.raises(
        OutOfDeviceMemoryError, match="cannot allocate 41 bytes: 60 of its 100 bytes are in use"
    ):
        device.alloc(41)
    rest = device.alloc(40)
    assert (device.budget, device.used, rest.nbytes, rest.tensor.dtype) == (100, 100, 40, torch.uint8)
    device.free(buffer)
    assert device.used == 40
    assert device.alloc(60).tensor.shape == (60,)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(MAKERS), st.lists(st.integers(1, 60) | st.just(0), max_size=30))
def test_allocations_fit_exactly_when_the_budget_says_so(make: Make, sizes: list[int]) -> None:
    """A size allocates, 0 frees the oldest."""
    device, live = make(100), []
    for size in sizes:
        if size == 0:
            if live:
                device.free(live.pop(0))
            continue
        fits = sum(buffer.nbytes for buffer in live) + size <= 100
        try:
            live.append(device.alloc(size))
        except OutOfDeviceMemoryError:
            assert not fits
        else:
            assert fits
        assert device.used == sum(buffer.nbytes for buffer in live) <= 100


def test_slots_are_buffers_of_their_own_in_one_arena(make: Make) -> None:
    device = make(100)
    arena = device.alloc(100)
    slots = arena.split(32)
    assert [slot.nbytes for slot in slots] == [32, 32, 32]
    assert len({slot.key for slot in slots}) == 3
    slots[1].tensor.fill_(7)
    assert arena.tensor[32:64].tolist() == [7] * 32
    device.free(arena)
    assert device.used == 0
    with pytest.raises(DaliError, match="touches a buffer that was freed or cut"):
        device.launch(device.stream("compute"), lambda: None, [slots[0]], [])


def test_memory_is_page_aligned(make: Make) -> None:
    assert make(5000).alloc(5000).tensor.data_ptr() % 4096 == 0


def test_misuse_of_memory_is_refused(make: Make) -> None:
    device = make(100)
    with pytest.raises(DaliError, match="0 bytes of"):
        device.alloc(0)
    arena = device.alloc(64)
    with pytest.raises(DaliError, match="cannot be cut into slots of 65"):
        arena.split(65)
    slots = arena.split(32)
    with pytest.raises(DaliError, match="cannot be cut"):
        arena.split(32)
    with pytest.raises(DaliError, match="cannot be cut"):
        slots[0].split(16)
    with pytest.raises(DaliError, match="no live allocation"):
        device.free(slots[0])
    with pytest.raises(DaliError, match="that was freed or cut into slots"):
        device.launch(device.stream("compute"), lambda: None, [], [arena])
    with pytest.raises(DaliError, match="cut into slots was adopted"):
        device.adopt(slots[1].tensor)
    device.free(arena)
    with pytest.raises(DaliError, match="no live allocation"):
        device.free(arena)


def test_memory_beyond_any_machine_is_out_of_memory(make: Make) -> None:
    with pytest.raises(OutOfDeviceMemoryError, match="cannot allocate"):
        make(2**70).alloc(2**69)


def test_views_of_one_storage_are_one_buffer(make: Make) -> None:
    device, tensor = make(16), torch.zeros(4, 4)
    whole, row = device.adopt(tensor), device.adopt(tensor[2])
    assert whole.key == row.key != device.adopt(torch.zeros(4)).key
    assert row.tensor.shape == (4,)
    assert (whole.nbytes, row.nbytes) == (64, 16)
    copy, compute = device.stream("copy"), device.stream("compute")
    device.launch(copy, lambda: tensor.fill_(3), [], [whole])
    device.launch(compute, lambda: tensor[2].mul_(2), [row], [row])
    assert device.release(whole).sum() == 48 + 12


def test_released_buffers_leave_nothing_behind(make: Make) -> None:
    device = make(16)
    for _ in range(3):
        buffer = device.adopt(torch.zeros(4))
        device.launch(device.stream("copy"), lambda: None, [buffer], [buffer])
        device.launch(device.stream("compute"), lambda: None, [buffer], [])
        device.release(buffer)
    assert device._dependencies._writer == device._dependencies._readers == {}


def test_a_copy_fills_the_front_of_its_destination(make: Make) -> None:
    device = make(32)
    slot = device.alloc(32)
    device.launch(device.stream("compute"), lambda: slot.tensor.zero_(), [], [slot])
    device.copy(device.stream("copy"), slot, device.adopt(torch.tensor([1.5, 2.5])))
    assert device.release(slot).view(torch.float32).tolist() == [1.5, 2.5, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DaliError, match="36 bytes does not fit a buffer of 32"):
        device.copy(device.stream("copy"), slot, device.adopt(torch.zeros(9)))


def test_operations_may_change_inference_tensors_from_any_thread(make: Make) -> None:
    device = make(16)
    with torch.inference_mode():
        out = torch.zeros(2)
    buffer = device.adopt(out)
    device.copy(device.stream("copy"), buffer, device.adopt(torch.full((2,), 5.0)))
    for name in ("copy", "compute"):
        device.launch(device.stream(name), lambda: out.add_(1), [buffer], [buffer])
    device.synchronize()
    assert out.tolist() == [7, 7]


def test_an_event_covers_what_was_issued_before_it(make: Make) -> None:
    device, log = make(16), []
    copy = device.stream("copy")
    assert device.done(device.mark(copy))
    device.synchronize(device.mark(copy))
    device.launch(copy, lambda: log.append("one"), [], [])
    event = device.mark(copy)
    device.synchronize(event)
    assert log == ["one"]
    assert device.done(event)


def test_an_error_surfaces_once_at_a_wait_and_the_device_goes_on(make: Make) -> None:
    device, out = make(16), torch.zeros(1)
    copy, compute = device.stream("copy"), device.stream("compute")
    row = device.adopt(out)
    device.launch(copy, boom, [], [row], label="fetch")
    device.launch(compute, lambda: out.fill_(1), [row], [row])
    cancelled = device.mark(compute)
    with pytest.raises(
        DaliError, match=r"'fetch' on stream 'copy' of \w+ failed: ValueError\('boom'\)"
    ) as caught:
        device.synchronize(cancelled)
    assert isinstance(caught.value.__cause__, ValueError)
    assert out.item() == 0
    with pytest.raises(DaliError, match="cancelled when an earlier operation"):
        device.synchronize(cancelled)
    with pytest.raises(DaliError, match="cancelled when an earlier operation"):
        device.done(cancelled)
    device.synchronize()
    device.launch(compute, lambda: out.fill_(2), [row], [row])
    assert device.release(row).item() == 2


def test_nothing_issued_before_the_error_is_seen_runs(make: Make) -> None:
    device, log = make(16), []
    row = device.adopt(torch.zeros(1))
    device.launch(device.stream("compute"), boom, [], [row])
    for name in ("compute", "copy", "compute"):
        device.launch(device.stream(name), lambda name=name: log.append(name), [row], [row])
    with pytest.raises(DaliError, match="boom"):
        device.synchronize()
    assert log == []
    device.launch(device.stream("copy"), lambda: log.append("after"), [], [])
    device.synchronize()
    assert log == ["after"]


def waiting_calls(device: Device, slot: Buffer) -> dict[str, Callable[[], object]]:
    event = device.mark(device.stream("copy"))

    def poll() -> None:
        while not device.done(event):
            pass

    return {"release": lambda: device.release(slot), "free": lambda: device.free(slot), "done": poll}


def test_slots_that_a_failure_left_undefined_can_be_used_again(make: Make) -> None:
    device = make(64)
    first, second = device.alloc(64).split(32)
    copy, compute = device.stream("copy"), device.stream("compute")
    for _ in range(3):
        for _ in range(4):
            device.launch(copy, boom, [], [first], label="fetch")
            device.launch(compute, first.tensor.zero_, [first], [second])
        with pytest.raises(DaliError, match="boom"):
            device.synchronize()
        for stream, slot in ((compute, first), (copy, second)):
            device.launch(stream, slot.tensor.zero_, [], [slot])
        assert device.release(first).sum() == device.release(second).sum() == 0


@pytest.mark.parametrize("wait", ["release", "free", "done"])
def test_every_waiting_call_raises(make: Make, wait: str) -> None:
    device = make(16)
    slot = device.alloc(16)
    device.launch(device.stream("copy"), boom, [], [slot])
    with pytest.raises(DaliError, match="boom"):
        waiting_calls(device, slot)[wait]()
    assert device.used == (0 if wait == "free" else 16)


def test_an_error_of_dalis_own_is_raised_as_it_is(make: Make) -> None:
    device = make(16)
    error = DaliError("The disk is gone.", "Plug it in.")

    def read() -> None:
        raise error

    device.launch(device.stream("disk"), read, [], [])
    with pytest.raises(DaliError) as caught:
        device.synchronize()
    assert caught.value is error


def test_ctrl_c_inside_an_operation_reaches_the_caller_and_loses_the_rest(make: Make) -> None:
    device, log = make(16), []

    def interrupted() -> None:
        raise KeyboardInterrupt

    def work() -> None:
        device.launch(device.stream("compute"), interrupted, [], [], label="expert")
        device.launch(device.stream("compute"), lambda: log.append("lost"), [], [])
        device.synchronize()

    with pytest.raises(KeyboardInterrupt):
        work()
    with pytest.raises(DaliError, match=r"'expert' on stream 'compute' of \w+ failed: KeyboardInterrupt"):
        device.synchronize()
    assert log == []
    device.launch(device.stream("compute"), lambda: log.append("next"), [], [])
    device.synchronize()
    assert log == ["next"]
