"""What a step takes beside its weights: of each layer, and of Python. The shipped model tells, as its weights are next to
nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dali.measure.bench import Measurement, Test, measure
from dali.probe.reading import Reading, reading_of

TOKENS, BATCH, PROMPT, REPETITIONS = 48, 8, 8, 5


@dataclass(frozen=True)
class Overheads:
    """Seconds of a decoding layer within kernels, of a decoding step outside of them, of each further sequence there, and of a
    layer of a short prompt's step."""

    layer: Reading
    step: Reading
    sequence: Reading
    prompt_layer: Reading


def overheads(run: Callable[[], tuple[Measurement, Measurement, Measurement, int]]) -> Overheads:
    """`run`: measurements of generated tokens, of those of several sequences, and of a short prompt, and the model's layers."""
    found, together, prompted, layers = run()
    token, shared = (_step(each) for each in (found, together))
    prompt = reading_of("a short prompt of the shipped model", prompted.seconds)
    outside, of_all = _outside(found, token), _outside(together, shared)
    return Overheads(
        _share(token, (token.value - outside) / layers),
        _share(token, outside),
        _share(shared, (of_all - outside) / (together.test.batch - 1)),
        _share(prompt, (prompt.value - outside) / layers),
    )


def _step(of: Measurement) -> Reading:
    return reading_of("a step of the shipped model", [each / of.test.generate for each in of.seconds])


def _outside(of: Measurement, step: Reading) -> float:
    """Seconds of a step outside of kernels."""
    return 0.0 if of.shares is None else of.shares["rest"] * step.value


def _share(of: Reading, value: float) -> Reading:
    return Reading(max(value, 1e-9), of.spread, of.count)


def shipped_model() -> tuple[Measurement, Measurement, Measurement, int]:
    """The model that ships inside the package, decoding one sequence and several, and with prompts."""
    import dali

    llm = dali.load()
    tests = [Test(0, TOKENS), Test(0, TOKENS, BATCH), Test(PROMPT, 0)]
    (found,), (together,), (prompted,) = measure([lambda: llm], tests, REPETITIONS)
    return found, together, prompted, llm.loaded.pool.layers
