from __future__ import annotations

import signal
import threading

import pytest
import torch
from hypothesis import given, settings

from dali.devices import CpuDevice
from devices.programs import Program, in_order, programs, run


@settings(deadline=None, max_examples=60)
@given(programs)
def test_threads_compute_what_program_order_does(program: Program) -> None:
    assert run(CpuDevice(2**20), program) == in_order(program, empty=0)


def test_compute_and_host_run_at_launch_on_the_callers_thread() -> None:
    device, log = CpuDevice(16), []
    for name in ("compute", "host"):
        device.launch(device.stream(name), lambda: log.append(threading.get_ident()), [], [])
    assert log == [threading.get_ident()] * 2


def test_other_streams_run_in_order_on_a_thread_each() -> None:
    device, log = CpuDevice(16), []
    started = threading.Barrier(2, timeout=30)
    for name in ("copy", "disk"):
        device.launch(device.stream(name), started.wait, [], [])  # both must be under way at once
        for turn in range(3):
            device.launch(device.stream(name), lambda name=name, turn=turn: log.append((name, turn)), [], [])
    device.synchronize()
    assert [turn for name, turn in log if name == "copy"] == [0, 1, 2]
    assert [turn for name, turn in log if name == "disk"] == [0, 1, 2]


def test_compute_waits_for_the_copy_it_depends_on() -> None:
    device, go, out = CpuDevice(16), threading.Event(), torch.zeros(1)
    row = device.adopt(out)
    device.launch(device.stream("copy"), lambda: (go.wait(30), out.fill_(2)), [], [row])
    assert not device.done(device.mark(device.stream("copy")))
    threading.Timer(0.01, go.set).start()
    device.launch(device.stream("compute"), lambda: out.mul_(3), [row], [row])
    assert out.item() == 6


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_while_the_host_waits_loses_nothing() -> None:
    device, out = CpuDevice(16), torch.zeros(1)
    waiting, go, caller = threading.Event(), threading.Event(), threading.get_ident()
    row = device.adopt(out)

    def slow() -> None:
        waiting.wait(30)
        signal.pthread_kill(caller, signal.SIGINT)
        go.wait(30)
        out.fill_(2)

    device.launch(device.stream("copy"), slow, [], [row])
    threading.Timer(0.05, waiting.set).start()
    with pytest.raises(KeyboardInterrupt):
        device.synchronize()
    go.set()
    assert device.release(row).item() == 2
