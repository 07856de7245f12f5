"""Steps of a model whose experts the CPU computes, as a watch and dali's own counters saw them.

A layer's seconds are measured. Where in its step it lies is not: what is no expert's is taken to be as long before each layer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dali.policies.reasons import CPU
from dali.replay.explain.slices import LayerStep, Slice
from dali.runtime.journal import REMEMBERED
from dali.telemetry import Telemetry

Counted = tuple[NDArray[np.int64], list[float], tuple[int, ...]]  # workload, seconds and misses of each layer


class Watch:
    """Does steps, as a loop's `watch`, and keeps what came of the last ones."""

    def __init__(self, telemetry: Telemetry, top_k: int) -> None:
        """`top_k`: experts a token."""
        self.begun = 0
        self.steps: deque[LayerStep] = deque(maxlen=REMEMBERED)
        self._telemetry = telemetry
        self._top_k = top_k
        self._zero = time.perf_counter()

    def __call__(self, step: Callable[[], object]) -> None:
        """Do the step and take note of it; of one that fails, nothing."""
        before, started = self._counted(), time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        workload, taken, misses = self._counted()
        workload = workload - before[0]
        if not workload.any():
            return
        self.begun += 1
        took = [now - then for now, then in zip(taken, before[1], strict=True)]
        gap = max(seconds - sum(took), 0.0) / max(len(took), 1)
        at = started - self._zero
        for layer, mine in enumerate(took):
            at += gap
            read = misses[layer] - before[2][layer] if misses else 0
            self.steps.append(self._layer(layer, workload[layer], at, mine, read))
            at += mine

    def _layer(
        self, layer: int, workload: NDArray[np.int64], began: float, seconds: float, read: int
    ) -> LayerStep:
        experts = {int(expert): int(workload[expert]) for expert in np.flatnonzero(workload)}
        tokens = sum(experts.values()) // self._top_k
        step = LayerStep(self.begun, layer, tokens, began, seconds, planned=seconds)
        told = {"layer": layer, "tokens": tokens, "experts": experts}
        told |= {"from disk": read} if self._telemetry.disk is not None else {}
        step.slices.append(Slice("cpu", str(layer), began, began + seconds, told))
        step.counts |= {CPU: len(experts), "read": read}
        return step

    def _counted(self) -> Counted:
        telemetry = self._telemetry
        layers = range(len(telemetry.workload))
        misses = () if (disk := telemetry.disk) is None else disk.misses
        return telemetry.workload.copy(), [telemetry.layer(layer).seconds for layer in layers], misses
