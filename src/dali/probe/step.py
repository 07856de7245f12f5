"""What a decoding step takes beside its weights: of each layer, and of Python. The shipped model tells, as its weights are next
to nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from dali.measure.bench import Measurement, Test, measure
from dali.probe.reading import Reading

TOKENS, REPETITIONS = 48, 5


@dataclass(frozen=True)
class Overheads:
    """Seconds of a layer within kernels, and of a step outside of them."""

    layer: Reading
    step: Reading


def overheads(run: Callable[[], tuple[Measurement, int]]) -> Overheads:
    """`run`: a measurement of generated tokens, and the model's layers."""
    found, layers = run()
    shares = found.shares or {"rest": 0.0}
    seconds = [each / found.test.generate for each in found.seconds]
    median = statistics.median(seconds)
    spread = statistics.median(abs(each - median) for each in seconds) / median
    step = Reading(max(shares["rest"] * median, 1e-9), spread, len(seconds))
    return Overheads(Reading(max((1 - shares["rest"]) * median / layers, 1e-9), spread, len(seconds)), step)


def shipped_model() -> tuple[Measurement, int]:
    """The model that ships inside the package, decoding."""
    import dali

    llm = dali.load()
    ((found,),) = measure([lambda: llm], [Test(0, TOKENS)], REPETITIONS)
    return found, llm.loaded.pool.layers
