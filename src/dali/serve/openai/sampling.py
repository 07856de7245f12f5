"""The fields that say how tokens are chosen, as OpenAI's clients and those of llama.cpp and vLLM call them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.errors import UsageError
from dali.serve.http.errors import invalid
from dali.serve.http.fields import Fields

if TYPE_CHECKING:
    from dali.llm import LLM

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_STOP_LETTERS = 2**12
SEEDS = 2**64
LARGEST = 1e6  # of penalties and temperatures: beyond, all is the same


def sampling_of(fields: Fields, llm: LLM) -> dict[str, Any]:
    """As LLM's methods take it. ApiError: a value that cannot be meant."""
    given = {
        "temperature": fields.number("temperature", 0, LARGEST),
        "top_k": _top_k(fields),
        "top_p": fields.number("top_p", 0, 1),
        "min_p": fields.number("min_p", 0, 1),
        "repeat_penalty": _repeat_penalty(fields),
        "repeat_last_n": fields.whole("repeat_last_n", -1),
        "presence_penalty": fields.number("presence_penalty", -LARGEST, LARGEST),
        "frequency_penalty": fields.number("frequency_penalty", -LARGEST, LARGEST),
        "seed": _seed(fields),
        "stop": stops_of(fields, "stop"),
        "ignore_eos": fields.flag("ignore_eos"),
    }
    fields.refuse("logit_bias", "tokens cannot be favoured one by one.")
    try:
        llm.sampling_params(**given)  # type: ignore[arg-type]
    except UsageError as error:
        raise invalid(f"{error.problem} {error.fix}") from error
    return given


def choices_of(fields: Fields) -> int:
    return fields.whole("n", 1, MOST_CHOICES) or 1


def _top_k(fields: Fields) -> int | None:
    value = fields.whole("top_k", -1)
    return 0 if value == -1 else value  # vLLM's word for off


def _repeat_penalty(fields: Fields) -> float | None:
    """llama.cpp's name, or vLLM's."""
    for name in ("repeat_penalty", "repetition_penalty"):
        value = fields.number(name, 0, LARGEST)
        if value == 0:
            raise fields.wrong(name, "above 0, where 1 turns it off")
        if value is not None:
            return value
    return None


def _seed(fields: Fields) -> int | None:
    """-1 asks for a random one, as in llama.cpp; other negative ones are as good as any."""
    value = fields.whole("seed", -(2**63), SEEDS - 1)
    return None if value == -1 or value is None else value % SEEDS


def stops_of(fields: Fields, name: str) -> tuple[str, ...] | None:
    stops = fields.texts(name, MOST_STOPS) if fields.any(name) not in ("", []) else None
    if stops and max(map(len, stops)) > MOST_STOP_LETTERS:
        raise fields.wrong(name, f"strings of at most {MOST_STOP_LETTERS} letters")
    return stops
