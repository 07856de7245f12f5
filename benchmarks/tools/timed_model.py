"""Decoding steps of a whole model over a GPU (dali.offload.gpu_model), and where the host's time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.llm import LLM

STRIDE = 7919  # between the tokens of a sequence: a prime, so that they differ


@dataclass
class HostTimes:
    """Of each step: seconds of a layer's host work, of planning and of Python's part of it, and those that a layer waited for the
    GPU, which are no work; and of each layer's step how many experts ran on the CPU, on the GPU where they lay, there after a
    copy, and how many copies were for later."""

    host: list[float] = field(default_factory=list)
    plan: list[float] = field(default_factory=list)
    python: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    plans: list[tuple[int, int, int, int]] = field(default_factory=list)

    def median_us(self, part: str = "host") -> float:
        return 1e6 * statistics.median(getattr(self, part))


class TimedModel:
    """The native model, and of its latest step the seconds: in the call, to plan, waited, and of the CPU's experts; its plans."""

    def __init__(self, native: Any) -> None:
        self._model = native
        self.seconds = self.plan = self.waited = self.cpu = 0.0
        self.plans: list[tuple[int, int, int, int]] = []

    def step(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        outcomes = self._model.step(*arguments)
        self.seconds = time.perf_counter() - started
        self.plans = [
            (on_cpu, resident + prefetched, fetched, ahead)
            for on_cpu, resident, prefetched, fetched, _, _, _, _, ahead, *_ in outcomes
        ]
        # After nine counts, and the seconds of all, as src/native/bind/gpu/outcome.h has them.
        self.plan, self.cpu, self.waited = (sum(each) for each in list(zip(*outcomes, strict=True))[10:13])
        return outcomes


class DenseAlone:
    """The native model without its experts: their sums stay what they were."""

    def __init__(self, native: Any, layers: int) -> None:
        self._model, self._layers = native, layers

    def step(self, planner: Any, *arguments: Any) -> Any:
        *parts, logits, queue = arguments
        self._model.start(*parts, queue)
        for layer in range(self._layers):
            self._model.dense(layer, planner.prefetches)
        self._model.head(logits)
        return []


def run_steps(
    llm: LLM, batch: int, steps: int, prepare: Callable[[int], object] = lambda step: None
) -> HostTimes:
    """Decode `steps` tokens of `batch` sequences, each after `prepare(step)`; choosing tokens is not timed."""
    found, layers = HostTimes(), llm.loaded.pool.layers
    timed = TimedModel(llm.engine.decoder._native)  # type: ignore[union-attr]
    for seconds in forwards(llm, timed, batch, steps, prepare):
        found.host.append((seconds - timed.cpu - timed.waited) / layers)
        found.plan.append(timed.plan / layers)
        found.python.append((seconds - timed.seconds) / layers)
        found.waited.append(timed.waited / layers)
        found.plans += timed.plans
    return found


def dense_seconds(llm: LLM, batch: int, steps: int, finish: Callable[[], object]) -> float:
    """Of the dense part alone in a step, until the GPU is through with it, which `finish` waits for; median."""
    alone = DenseAlone(llm.engine.decoder._native, llm.loaded.pool.layers)  # type: ignore[union-attr]
    found = list(forwards(llm, alone, batch, steps, lambda step: finish(), finish))
    return statistics.median(found[len(found) // 4 :])


def forwards(
    llm: LLM,
    native: Any,
    batch: int,
    steps: int,
    prepare: Callable[[int], object],
    finish: Callable[[], object] = lambda: None,
) -> Iterator[float]:
    """Seconds of each step with `native` in the native model's place, `finish` included."""
    params = SamplingParams(temperature=0, ignore_eos=True)
    sequences = [Sequence(Request((index + 1,), steps + 2, params)) for index in range(batch)]
    vocabulary = llm.model.config.vocab_size
    with patch.object(llm.engine.decoder, "_native", native):
        for step in range(steps):
            prepare(step)
            started = time.perf_counter()
            llm.engine._forward([(sequence, 1) for sequence in sequences])
            finish()
            yield time.perf_counter() - started
            for index, sequence in enumerate(sequences):
                sequence.push((STRIDE * (step + 1) + index) % vocabulary)
                sequence.computed += 1
