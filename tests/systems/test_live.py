"""Every system in a live executor: the outputs are the CPU's, bit for bit, whatever it decides."""

from __future__ import annotations

import numpy as np
import pytest

from dali import systems
from dali.policies.signals import Step
from runtime.tiny_runtime import (
    EXPERTS,
    LAYERS,
    STEPS,
    TOP_K,
    Setting,
    expected,
    identical,
    residents,
    run,
    step_inputs,
    tiny_executor,
    tiny_model,
)

EVERY = [
    name
    for base in systems.names()
    for name in (base, *(f"{base}:{variant}" for variant in systems.get(base).variants))
]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("batch", "slots"), [(1, 3), (1, 18), (8, 18)])
def test_the_bits_are_the_cpus(name: str, batch: int, slots: int) -> None:
    setting, model = Setting(slots=slots, batch=batch, scratch=min(slots, 6)), tiny_model()
    policies = systems.get(name).create(LAYERS, EXPERTS, TOP_K, residents(setting, LAYERS), setting.seed)
    executor = tiny_executor(
        setting, model, assign=policies.assign, prefetch=policies.prefetch, cache=policies.cache
    )
    held = sum(len(executor.residency.residents(layer)) for layer in range(LAYERS))
    outputs = []
    for step in STEPS:
        tokens = len(step_inputs(batch, step))
        if policies.begin is not None:
            policies.begin(Step(np.arange(tokens) % batch, np.full(tokens, step == 0)))
        outputs += run(executor, model, batch, range(step, step + 1))
        assert sum(len(executor.residency.residents(layer)) for layer in range(LAYERS)) == held
    assert identical(outputs, expected(model, batch))
