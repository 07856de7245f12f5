"""Copies that fail and Ctrl-C, anywhere: a clear error, no hang, and right results from the next step on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import dali
from dali.devices import Operation, SimDevice
from dali.errors import DaliError
from dali.kernels.reference import compute_experts
from dali.runtime.executor import Executor
from runtime.tiny_runtime import (
    LAYERS,
    STEPS,
    Model,
    Setting,
    check_slots,
    expected,
    identical,
    run,
    step_inputs,
    tiny_executor,
    tiny_model,
)

SETTINGS = [  # demanded copies that recycle; prefetches, swaps and the CPU's part
    Setting("gpu", "none", "lru", 2 + LAYERS, batch=2, scratch=2),
    Setting(
        "two_lane", "residual", "workload", 6 + 2 * LAYERS, batch=8, scratch=6, count=2, profile="laptop-8gb"
    ),
]


def budget(setting: Setting) -> int:
    return setting.slots * tiny_model().layout.record_bytes


@torch.inference_mode()
def persist(
    executor: Executor, model: Model, setting: Setting, again: Callable[[], None] = lambda: None
) -> tuple[list[list[Tensor]], list[BaseException]]:
    """Every step's outputs, each step tried again until it goes well, and what went wrong. `again` comes before another try."""
    layers = [executor.layer(index) for index in range(LAYERS)]
    outputs, errors = [], []
    for step in STEPS:
        while True:
            try:
                outputs.append(model.forward(layers, step_inputs(setting.batch, step)))
                break
            except (DaliError, KeyboardInterrupt) as error:
                errors.append(error)
                assert len(errors) < 5
                again()
    return outputs, errors


def check(executor: Executor, setting: Setting, outputs: list[list[Tensor]]) -> None:
    executor.device.synchronize()
    assert identical(outputs, expected(tiny_model(), setting.batch))
    check_slots(executor.residency, setting.slots, executor.residency.resident_slots // LAYERS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.assign)
def test_a_copy_that_fails_anywhere(setting: Setting) -> None:
    model = tiny_model()
    sound = SimDevice(budget(setting), seed=1)
    tiny_executor(setting, model, sound)
    placed = sound._copies
    run(tiny_executor(setting, model, sound := SimDevice(budget(setting), seed=1)), model, setting.batch)
    for copy in (*range(0, placed, 3), *range(placed, sound._copies, 2)):
        device = SimDevice(budget(setting), seed=copy, failing_copy=copy)
        if copy < placed:  # nothing to go back to
            with pytest.raises(DaliError, match=f"Copy {copy} of sim failed half-way"):
                tiny_executor(setting, model, device)
            continue
        executor = tiny_executor(setting, model, device)
        outputs, errors = persist(executor, model, setting)
        assert [f"Copy {copy} of sim failed" in str(error) for error in errors] in ([True], []), errors
        check(executor, setting, outputs)


def test_a_kernel_that_fails() -> None:
    setting, model = SETTINGS[1], tiny_model()
    for at in kernel_calls(setting):
        kernel = Failing(at, RuntimeError("device-side assert"))
        executor = tiny_executor(setting, model, SimDevice(budget(setting), seed=at), kernel)
        outputs, errors = persist(executor, model, setting)
        assert ["device-side assert" in str(error) and isinstance(error, DaliError) for error in errors] == [
            True
        ]
        check(executor, setting, outputs)


class Failing:
    """The reference kernel, but for its n-th call, which raises."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error
        self.calls = 0

    def __call__(self, *arguments: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        compute_experts(*arguments)


def kernel_calls(setting: Setting) -> range:
    """Some of the kernel calls of a run without fault."""
    kernel = Failing(0, RuntimeError())
    run(tiny_executor(setting, tiny_model(), kernel=kernel), tiny_model(), setting.batch)
    return range(1, kernel.calls, 5)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.assign)
def test_ctrl_c_inside_a_kernel(setting: Setting) -> None:
    model = tiny_model()
    for at in kernel_calls(setting):
        kernel = Failing(at, KeyboardInterrupt())
        executor = tiny_executor(setting, model, SimDevice(budget(setting), seed=at), kernel)
        outputs, errors = persist(executor, model, setting)
        assert list(map(type, errors)) == [KeyboardInterrupt]
        check(executor, setting, outputs)


class Interrupted(SimDevice):
    """Raises KeyboardInterrupt when the host waits for the n-th time from `waits = 0` on."""

    waits, at = 0, 0

    def _finish(self, operation: Operation) -> None:
        self.waits += 1
        if self.waits == self.at:
            raise KeyboardInterrupt
        super()._finish(operation)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.assign)
def test_ctrl_c_while_the_host_waits(setting: Setting) -> None:
    model = tiny_model()
    device = Interrupted(budget(setting))
    executor = tiny_executor(setting, model, device)
    device.waits = 0
    persist(executor, model, setting)
    for at in range(1, device.waits, 11):
        device = Interrupted(budget(setting), seed=at)
        executor = tiny_executor(setting, model, device)
        device.waits, device.at = 0, at
        outputs, errors = persist(executor, model, setting)
        assert list(map(type, errors)) == [KeyboardInterrupt]
        check(executor, setting, outputs)


class CtrlC:
    """KeyboardInterrupt after so many lines that ran in a file of the runtime's, and again after so many more."""

    def __init__(self, file: str, *after: int) -> None:
        self.file = str(Path(dali.__file__).parent / "runtime" / file)
        self.after = list(after)
        self.lines = 0

    def arm(self) -> None:
        sys.settrace(self._call)  # a trace function that raises is taken away

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename == self.file else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if event == "line":
            self.lines += 1
            if self.after and self.lines == self.after[0]:
                del self.after[0]
                self.lines = 0
                raise KeyboardInterrupt
        return self._line


@pytest.fixture
def traced() -> Any:
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.mark.parametrize("file", ["executor.py", "residency.py"])
def test_ctrl_c_at_any_line_and_again_while_recovering(file: str, traced: None) -> None:
    model, random = tiny_model(), Random(0)
    for setting in SETTINGS:
        counting = CtrlC(file)
        counting.arm()
        persist(tiny_executor(setting, model), model, setting)
        for turn in range(25):
            executor = tiny_executor(setting, model, SimDevice(budget(setting), seed=turn))
            interrupts = CtrlC(file, random.randrange(1, counting.lines // 2), random.randrange(1, 80))
            interrupts.arm()
            outputs, errors = persist(executor, model, setting, interrupts.arm)
            assert list(map(type, errors)) == [KeyboardInterrupt, KeyboardInterrupt]
            check(executor, setting, outputs)
