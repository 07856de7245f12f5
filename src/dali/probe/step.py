"""What a step takes beside its weights: of each layer, and of Python. The shipped model tells, as its weights are next to
nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dali.measure.bench import Measurement, Test, measure
from dali.probe.reading import Reading, reading_of

TOKENS, PROMPT, REPETITIONS = 48, 8, 5


@dataclass(frozen=True)
class Overheads:
    """Seconds of a decoding layer within kernels, of a decoding step outside of them, and of a layer of a short prompt's step."""

    layer: Reading
    step: Reading
    prompt_layer: Reading


def overheads(run: Callable[[], tuple[Measurement, Measurement, int]]) -> Overheads:
    """`run`: a measurement of generated tokens, one of a short prompt, and the model's layers."""
    found, prompted, layers = run()
    shares = found.shares or {"rest": 0.0}
    token = reading_of("a step of the shipped model", [each / found.test.generate for each in found.seconds])
    prompt = reading_of("a short prompt of the shipped model", prompted.seconds)
    outside = shares["rest"] * token.value
    return Overheads(
        _share(token, (1 - shares["rest"]) * token.value / layers),
        _share(token, outside),
        _share(prompt, (prompt.value - outside) / layers),
    )


def _share(of: Reading, value: float) -> Reading:
    return Reading(max(value, 1e-9), of.spread, of.count)


def shipped_model() -> tuple[Measurement, Measurement, int]:
    """The model that ships inside the package, decoding, and with prompts."""
    import dali

    llm = dali.load()
    tests = [Test(0, TOKENS), Test(PROMPT, 0)]
    (found,), (prompted,) = measure([lambda: llm], tests, REPETITIONS)
    return found, prompted, llm.loaded.pool.layers
