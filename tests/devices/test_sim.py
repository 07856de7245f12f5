from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.devices import (
    Buffer,
    Dependencies,
    Device,
    Operation,
    OutOfDeviceMemoryError,
    RaceDetector,
    SimDevice,
)
from dali.errors import DaliError
from devices.programs import Copy, Program, in_order, programs, run

EMPTY = -1  # 0xFF bytes as int64


@settings(deadline=None, max_examples=100)
@given(programs, st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
def test_every_schedule_computes_what_program_order_does(program: Program, seeds: list[int]) -> None:
    clocks = []
    for seed in seeds:
        device = SimDevice(2**20, seed=seed)
        assert run(device, program) == in_order(program, EMPTY)
        clocks.append((device.clock.now, device.clock.timeline))
    assert all(clock == clocks[0] for clock in clocks)  # modelled time is no matter of the schedule


class Blind(RaceDetector):
    """Lets races happen, to see what they do."""

    def launched(self, operation: Operation, reads: object, writes: object) -> None: ...


def fetch_and_use(device: Device, out: torch.Tensor) -> None:
    """Two experts through one slot: out = first, then second."""
    slot = device.alloc(16)
    rows = [device.adopt(row) for row in out.unbind()]
    copy, compute = device.stream("copy"), device.stream("compute")
    for row, weight in zip(rows, (1.0, 2.0), strict=True):
        device.copy(copy, slot, device.adopt(torch.full((4,), weight)), 2.0, label=f"fetch {weight:g}")
        device.launch(compute, expert(slot, row), [slot], [row], 1.0, label=f"expert {weight:g}")
    device.synchronize()


def expert(slot: Buffer, row: Buffer) -> object:
    return lambda: row.tensor.copy_(slot.tensor.view(torch.float32))


def test_the_timeline_of_a_slot_used_twice() -> None:
    device = SimDevice(16)
    fetch_and_use(device, torch.zeros(2, 4))
    assert [tuple(span) for span in device.clock.timeline] == [
        ("copy", "fetch 1", 0.0, 2.0),
        ("compute", "expert 1", 2.0, 3.0),
        ("copy", "fetch 2", 3.0, 5.0),
        ("compute", "expert 2", 5.0, 6.0),
    ]


def test_a_copy_is_slower_while_the_host_stream_computes() -> None:
    device = SimDevice(16)
    device.copy(device.stream("copy"), device.alloc(16), device.adopt(torch.ones(4)), 2.0, 4.0)
    device.launch(device.stream("host"), lambda: None, [], [], 1.0)
    device.synchronize()
    assert device.clock.now == 2.5


def test_work_outside_of_launches_is_charged_and_busy_time_is_counted_once() -> None:
    device = SimDevice(16)
    device.charge(device.stream("compute"), 1.5, "dense")
    device.launch(device.stream("compute"), lambda: None, [], [], 2.0)
    device.launch(device.stream("host"), lambda: None, [], [], 0.5)
    device.synchronize()
    assert device.now() == 3.5
    assert device.busy_seconds() == {"compute": 3.5, "host": 0.5}
    assert device.busy_seconds() == {}


def test_some_schedule_shows_what_a_missing_dependency_does() -> None:
    """Without its wait the first expert may read a slot that is empty or that is being filled."""
    seen = set()
    for seed in range(60):
        out = torch.zeros(2, 4)
        device = SimDevice(16, seed=seed, dependencies=Dependencies(drop=0), races=Blind())
        fetch_and_use(device, out)
        seen.add(repr(out[0, 0].item()))
    assert {"1.0", "nan"} <= seen


def test_nothing_need_run_before_the_host_waits() -> None:
    early = set()
    for seed in range(20):
        device, log = SimDevice(16, seed=seed), []
        device.launch(device.stream("compute"), lambda log=log: log.append("ran"), [], [])
        early.add(tuple(log))
        device.synchronize()
        assert log == ["ran"]
    assert early == {(), ("ran",)}  # but some schedules are eager


def test_independent_operations_run_in_either_order() -> None:
    orders = set()
    for seed in range(20):
        log: list[str] = []
        device = SimDevice(16, seed=seed)
        for name in ("copy", "compute"):
            device.launch(device.stream(name), lambda name=name, log=log: log.append(name), [], [])
        device.synchronize()
        orders.add(tuple(log))
    assert orders == {("copy", "compute"), ("compute", "copy")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_memory_is_not_a_number_until_written_and_after_it_was_freed(dtype: torch.dtype) -> None:
    device = SimDevice(64)
    buffer = device.alloc(64)
    contents = buffer.tensor.view(dtype)
    assert contents.isnan().all()
    device.copy(device.stream("copy"), buffer, device.adopt(torch.zeros(64 // dtype.itemsize, dtype=dtype)))
    device.synchronize()
    assert not contents.isnan().any()
    device.free(buffer)
    assert contents.isnan().all()


def test_an_undeclared_read_sees_a_slot_that_is_being_filled() -> None:
    """The slot holds an expert, another is on its way: the read may come before, after or in the middle."""
    seen = set()
    for seed in range(60):
        device = SimDevice(16, seed=seed)
        slot, out = device.alloc(16), torch.zeros(4)
        device.copy(device.stream("copy"), slot, device.adopt(torch.ones(4)))
        device.synchronize()
        device.copy(device.stream("copy"), slot, device.adopt(torch.full((4,), 2.0)))
        device.launch(device.stream("compute"), expert(slot, device.adopt(out)), [], [])
        device.synchronize()
        seen.add(repr(out[0].item()))
    assert seen == {"1.0", "2.0", "nan"}


def test_the_device_may_have_less_memory_than_its_budget() -> None:
    device = SimDevice(100, name="sim:laptop", capacity=60)
    device.alloc(40)
    with pytest.raises(OutOfDeviceMemoryError, match="sim:laptop cannot allocate 40 bytes: 40 of 60 bytes"):
        device.alloc(40)
    assert device.used == 40
    device.alloc(20)


@pytest.mark.parametrize("seed", range(5))
def test_a_failing_copy_stops_all_that_follows(seed: int) -> None:
    device = SimDevice(16, seed=seed, failing_copy=1)
    out = torch.zeros(2, 4)
    with pytest.raises(DaliError, match=r"Copy 1 of sim failed half-way through 16 bytes \(injected\)"):
        fetch_and_use(device, out)
    assert out[1].tolist() == [0] * 4  # the expert of the failed copy did not run
    device.synchronize()
    assert device.used == 16


def test_the_device_works_again_after_a_failing_copy() -> None:
    device = SimDevice(32, failing_copy=0)
    with pytest.raises(DaliError, match="Copy 0"):
        fetch_and_use(device, torch.zeros(2, 4))
    out = torch.zeros(2, 4)
    fetch_and_use(device, out)
    assert out[:, 0].tolist() == [1, 2]


@settings(deadline=None, max_examples=100)
@given(programs, st.integers(0, 2**32), st.integers(0, 4))
def test_a_failing_copy_anywhere_is_an_error_and_never_a_wrong_result(
    program: Program, seed: int, at: int
) -> None:
    device = SimDevice(2**20, seed=seed, failing_copy=at)
    copies = sum(isinstance(action, Copy) for action in program)
    if at < copies:
        with pytest.raises(DaliError, match=f"Copy {at} of sim failed"):
            run(device, program)
    assert run(device, program) == in_order(program, EMPTY)


def test_cancelled_operations_are_not_on_the_timeline() -> None:
    device = SimDevice(16, failing_copy=0)
    slot, copy = device.alloc(16), device.stream("copy")
    for _ in range(20):  # some before the failure is noticed, some after
        device.copy(copy, slot, device.adopt(torch.ones(4)), 5.0)
    with pytest.raises(DaliError, match="Copy 0"):
        device.synchronize()
    device.launch(copy, lambda: None, [], [slot], 1.0, label="next")
    device.synchronize()
    assert [tuple(span) for span in device.clock.timeline] == [("copy", "next", 0.0, 1.0)]


def test_done_follows_the_virtual_clock() -> None:
    device = SimDevice(16)
    slot, weights = device.alloc(16), device.adopt(torch.ones(4))
    device.copy(device.stream("copy"), slot, weights, 5.0)
    fetched = device.mark(device.stream("copy"))
    device.launch(device.stream("compute"), lambda: None, [], [], 4.0)
    assert not device.done(fetched)
    device.synchronize(device.mark(device.stream("compute")))
    assert (device.clock.now, device.done(fetched)) == (4.0, False)
    device.launch(device.stream("compute"), lambda: None, [], [], 1.0)
    device.synchronize(device.mark(device.stream("compute")))
    assert (device.clock.now, device.done(fetched)) == (5.0, True)
    assert slot.tensor.view(torch.float32).tolist() == [1] * 4  # done means it has run


def test_a_race_is_reported() -> None:
    device = SimDevice(16, dependencies=Dependencies(drop=0))
    with pytest.raises(DaliError, match="Race: nothing orders 'expert 1' on stream 'compute' and 'fetch 1'"):
        fetch_and_use(device, torch.zeros(2, 4))


class Circular(Dependencies):
    """Makes the first operation wait for the second."""

    first: Operation | None = None

    def derive(self, operation: Operation, reads: object, writes: object) -> None:
        super().derive(operation, set(), set())
        if self.first is None:
            self.first = operation
        else:
            self.first.waits, operation.waits = (operation,), (self.first,)


def test_a_deadlock_is_named_and_leaves_the_device_usable() -> None:
    device = SimDevice(16, dependencies=Circular(), seed=1)
    assert device._eagerness == 0  # else the first operation has run before it is made to wait
    device.launch(device.stream("copy"), lambda: None, [], [], label="fetch")
    device.launch(device.stream("compute"), lambda: None, [], [], label="expert")
    with pytest.raises(DaliError, match="Deadlock on sim: 'fetch' on stream 'copy' waits for 'expert'"):
        device.synchronize()
    device.synchronize()


def test_impossible_modelled_times_are_refused() -> None:
    device = SimDevice(16)
    device.launch(device.stream("compute"), lambda: None, [], [], float("nan"))
    with pytest.raises(DaliError, match="modelled times of"):
        device.synchronize()
