"""Plans that go by what is observed, and steps that are left to the CPU: over devices that are slower than their profile says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dali.devices import COMPUTE, HOST, Buffer, Operation, SimDevice
from dali.policies.correction import Correction
from dali.policies.doubt import Doubt
from dali.policies.trial import PAIRS
from dali.runtime.decoding_steps import MOST_TOKENS, DecodingSteps
from dali.runtime.executor import Executor
from dali.runtime.residency import COPY
from runtime.tiny_runtime import LAYERS, Setting, expected, identical, run, tiny_executor, tiny_model

PROFILE = "rtx3060-desktop"  # its link is fast enough for copies
DENSE = 50e-6  # seconds between two layers' experts, as modelled
DEFAULT = Setting("two_lane", "ridge", "fading", profile=PROFILE)
OTHERS = Setting("greedy", "none", "lru", profile=PROFILE)


class Slower(SimDevice):
    """Streams that take so many times what they are modelled to; `paces` may be changed at any time."""

    def __init__(self, setting: Setting, nbytes: int, **paces: float) -> None:
        super().__init__(setting.slots * nbytes, seed=setting.seed)
        self.paces = paces

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        pace = self.paces.get(operation.stream.name, 1.0)
        operation.seconds = pace * operation.seconds[0], pace * operation.seconds[1]
        super()._enqueue(operation, reads, writes)


def executor_over(setting: Setting, **paces: float) -> tuple[Executor, Slower, Any]:
    model = tiny_model(*setting.arithmetic)
    device = Slower(setting, model.layout.record_bytes, **paces)
    executor = tiny_executor(setting, model, device, dense=DENSE)
    executor.expected.cpu, executor.expected.link = (Correction(weight=1 / 16, rest=64) for _ in range(2))
    return executor, device, model


def doubting(executor: Executor, notes: list[str]) -> Doubt:
    doubt = Doubt()
    executor.steps = DecodingSteps(
        doubt, LAYERS, executor.expected, lambda tokens: DENSE, executor._telemetry, "sim", notes.append
    )
    return doubt


@pytest.mark.parametrize("setting", [DEFAULT, OTHERS])
def test_a_device_that_is_as_modelled_corrects_nothing_and_raises_no_doubt(setting: Setting) -> None:
    executor, _, model = executor_over(setting)
    notes: list[str] = []
    doubting(executor, notes)
    outputs = run(executor, model, 1, range(180))
    assert executor.expected.now is executor.expected.given
    assert executor.expected.cpu._mean == pytest.approx(0.0, abs=1e-9)  # not only within the band
    assert executor.expected.link._mean == pytest.approx(0.0, abs=1e-9)
    assert executor._telemetry.total().cpu > 0
    assert executor._telemetry.total().link_bytes > 0
    assert executor._telemetry.steps_on_cpu == 0
    assert notes == []
    assert identical(outputs, expected(model, 1, range(180)))


@pytest.mark.parametrize("setting", [DEFAULT, OTHERS])
def test_plans_follow_a_cpu_that_is_slower_than_the_profile_says(setting: Setting) -> None:
    usual, _, model = executor_over(setting)
    executor, _, _ = executor_over(setting, **{HOST: 3.0})
    for one in (usual, executor):
        run(one, model, 1, range(40))
    assert executor.expected.cpu.applied == pytest.approx(3 ** (1 - (15 / 16) ** 64))
    assert executor.expected.link.applied == 1.0
    assert executor.guards.costs is executor.prefetcher.costs is executor.expected.now
    before = [one._telemetry.total().cpu for one in (usual, executor)]
    outputs = run(executor, model, 1, range(40))
    run(usual, model, 1, range(40))
    computed = [one._telemetry.total().cpu - of for one, of in zip((usual, executor), before, strict=True)]
    assert computed[1] < computed[0]
    assert identical(outputs, expected(model, 1, range(40)))


def test_plans_follow_a_link_that_is_slower_than_the_profile_says() -> None:
    executor, _, model = executor_over(DEFAULT, **{COPY: 8.0})
    run(executor, model, 2, range(60))
    costs = executor.expected.given
    assert 8 * costs.link / costs.link_contended <= executor.expected.link.applied <= 8 * 1.01
    assert executor.expected.cpu.applied == 1.0
    assert executor.residency._expected == executor.expected.now.link > costs.link


def test_steps_are_left_to_the_cpu_while_plans_lose_and_planned_again_when_they_gain() -> None:
    executor, device, model = executor_over(DEFAULT, **{COMPUTE: 60.0})
    notes: list[str] = []
    doubt = doubting(executor, notes)
    telemetry = executor._telemetry
    outputs = run(executor, model, 1, range(120))
    assert doubt.reverted
    assert telemetry.reverted
    assert telemetry.reverts == 1
    assert telemetry.steps_on_cpu > PAIRS
    (note,) = notes
    assert note.startswith("Decoding steps take ")
    assert "(modelled, taking turns)" in note
    assert note.endswith("from here on they are all there.")
    assert identical(outputs, expected(model, 1, range(120)))

    before = telemetry.total()
    run(executor, model, 1, range(1, 20))
    after = telemetry.total()
    assert after.cpu - before.cpu == after.lookups - before.lookups > 0
    assert after.link_bytes == before.link_bytes
    assert after.swaps == before.swaps

    device.paces.clear()
    outputs = run(executor, model, 1, range(1, 140))
    assert not doubt.reverted
    assert not telemetry.reverted
    assert len(notes) == 2
    assert notes[1].endswith("from here on they are planned again.")
    assert identical(outputs, expected(model, 1, range(1, 140)))


def test_a_prompt_is_planned_whatever_decoding_does() -> None:
    executor, _, model = executor_over(DEFAULT)
    doubting(executor, [])
    steps = executor.steps
    assert steps is not None
    steps._doubt.reverted = True
    run(executor, model, MOST_TOKENS + 1, range(1, 2))
    assert not steps.on_cpu
    run(executor, model, MOST_TOKENS, range(1, 2))
    assert steps.on_cpu


def test_a_step_that_failed_is_no_step() -> None:
    told: list[float] = []

    class Tells:
        on_cpu = False

        def step(self, seconds: float, modelled: float) -> bool:
            told.append(seconds)
            return False

    executor, _, _ = executor_over(Setting())
    doubt: Any = Tells()
    steps = DecodingSteps(doubt, 3, executor.expected, lambda tokens: 0.0, executor._telemetry, "sim", print)
    steps.begin(1)
    steps.add(0, 1.0, 0.0)
    steps.add(1, 1.0, 0.0)
    steps.begin(1)  # of the one before, a layer is missing
    for layer in range(3):
        steps.add(layer, 10.0, 0.0)
    assert told == [30.0]
