"""The executor's outputs equal the CPU's bit for bit, whatever decides, fits or runs first."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from dali.devices import CpuDevice
from dali.hardware.profile import known
from dali.policies import names
from runtime.tiny_runtime import (
    ARITHMETICS,
    BATCHES,
    BUDGETS,
    Setting,
    expected,
    identical,
    run,
    stratified,
    tiny_executor,
    tiny_model,
)

SETTINGS = list(stratified())


def test_any_two_choices_meet_in_some_setting() -> None:
    choices = (names("assign"), names("prefetch"), names("cache"), BUDGETS, BATCHES, known(), ARITHMETICS)
    found = [(s.assign, s.prefetch, s.cache, s.slots, s.batch, s.profile, s.arithmetic) for s in SETTINGS]
    for one, other in combinations(range(len(choices)), 2):
        assert {(s[one], s[other]) for s in found} == set(product(choices[one], choices[other]))
    assert len(set(SETTINGS)) == len(SETTINGS) >= 300


@pytest.mark.parametrize("part", range(10))
def test_the_simulated_device_computes_the_cpus_bits(part: int) -> None:
    for setting in SETTINGS[part::10]:
        model = tiny_model(*setting.arithmetic)
        executor = tiny_executor(setting, model)
        assert identical(run(executor, model, setting.batch), expected(model, setting.batch)), setting


@pytest.mark.parametrize("assign", names("assign"))
def test_so_does_a_device_that_runs_things_for_real(assign: str) -> None:
    model = tiny_model()
    executor = tiny_executor(Setting(assign, batch=8), model, CpuDevice(2**20))
    assert identical(run(executor, model, 8), expected(model, 8))
