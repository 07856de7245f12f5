"""How the tokens of an answer are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dali.cli.flags.kinds import whole
from dali.cli.flags.option import Kind, flag


def _number(metavar: str, most: float, expected: str) -> Kind:
    def parse(text: str) -> float:
        value = float(text)
        if not 0 <= value <= most or math.isinf(value):
            raise ValueError
        return value

    return Kind(metavar, expected, parse)


def _penalty(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _factor(text: str) -> float:
    value = _penalty(text)
    if value <= 0:
        raise ValueError
    return value


def _or_else(value: float) -> str:
    """The default of a sampling flag. The engine's own values are written out, as QUANTS are."""
    return f"(default: the model's, or else {value})"


TEMPERATURE = _number("T", math.inf, "0 for the likeliest tokens, or a number such as 0.7")
PROBABILITY = _number("P", 1, "a number from 0 to 1")
FACTOR = Kind("X", "a number above 0, such as 1.1", _factor)
PENALTY = Kind("X", "a number such as 0.5", _penalty)


@dataclass(frozen=True)
class Sampling:
    """None leaves a choice to the model."""

    predict: int | None = flag(
        "answer",
        whole(1, -1, "no limit"),
        "most tokens to answer with (default, and -1: no limit)",
        "-n",
    )
    temp: float | None = flag(
        "answer", TEMPERATURE, f"temperature; 0 always takes the likeliest token {_or_else(0.8)}"
    )
    top_k: int | None = flag(
        "answer", whole(0), f"sample from the N likeliest tokens; 0 turns it off {_or_else(40)}"
    )
    top_p: float | None = flag(
        "answer",
        PROBABILITY,
        f"sample from the likeliest tokens that make up P; 1 turns it off {_or_else(0.95)}",
    )
    min_p: float | None = flag(
        "answer",
        PROBABILITY,
        f"drop tokens less than P times as likely as the first; 0 turns it off {_or_else(0.05)}",
    )
    repeat_penalty: float | None = flag(
        "answer", FACTOR, "make tokens of the last ones less likely by this factor (default: 1, off)"
    )
    repeat_last_n: int | None = flag(
        "answer", whole(-1), "tokens that all three penalties look back on; -1 for all (default: 64)"
    )
    presence_penalty: float | None = flag(
        "answer", PENALTY, "take X off the logits of those tokens (default: 0, off)"
    )
    frequency_penalty: float | None = flag(
        "answer", PENALTY, "take X off for each time such a token is there (default: 0, off)"
    )
    seed: int | None = flag(
        "answer",
        whole(0, -1, "a random one"),
        "makes sampling repeatable (default, and -1: a random one)",
    )

    def sampling(self) -> dict[str, Any]:
        """The same as fields of SamplingParams."""
        return {
            "max_tokens": self.predict,
            "temperature": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
        }
