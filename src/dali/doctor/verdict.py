"""Whether a model is worth running here: by thresholds that stand here alone, and in docs/USING.md."""

from __future__ import annotations

from typing import NamedTuple

from dali.doctor.speed import Prediction
from dali.errors import DaliError

FAST, USABLE = 10.0, 3.0  # tokens a second of decoding, from which a model is called so


class Verdict(NamedTuple):
    """`word`: FAST, USABLE, SLOW or NO; `why`: one sentence; `fix`: of NO, the way out."""

    word: str
    why: str
    fix: str = ""

    @property
    def fits(self) -> bool:
        return self.word != "NO"


def of_speed(prediction: Prediction) -> Verdict:
    """By the expected tokens a second."""
    speed = prediction.decode.expected
    word = "FAST" if speed >= FAST else "USABLE" if speed >= USABLE else "SLOW"
    limit = f"{FAST:.0f} or more" if word == "FAST" else f"{USABLE:.0f} to {FAST:.0f}"
    limit = f"fewer than {USABLE:.0f}" if word == "SLOW" else limit
    return Verdict(word, f"It decodes {of(speed)} tokens a second, modelled; {word} is {limit}.")


def of_refusal(error: DaliError) -> Verdict:
    """NO, as loading would say it."""
    return Verdict("NO", error.problem, error.fix)


def of(value: float) -> str:
    """A speed as people read it."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
