"""What generation_config.json asks for, in transformers' words and those that other programs write there.

The file is optional, and nothing in it keeps a model from loading: what cannot be meant or done is left out, and told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dali.errors import reason

# What turns a filter off, and is meant by null; -1 says the same in other programs.
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
MOST = {"temperature": math.inf, "top_k": math.inf, "top_p": 1.0, "min_p": 1.0}
LENGTHS = ("max_length", "max_new_tokens")
# What dali does not do, with the values that ask for nothing.
UNDONE: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "frequency_penalty": (0,),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "sequence_bias": (),
    "suppress_tokens": (),
    "top_h": (1,),
    "typical_p": (1,),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class GenerationConfig:
    """`sampling`: fields of SamplingParams; those that choose among tokens stand in it all or not at all. `ends`: tokens that end
    an answer, None where the file does not say. `notes`: sentences on what is left out."""

    sampling: dict[str, Any] = field(default_factory=dict)
    ends: list[int] | None = None
    notes: list[str] = field(default_factory=list)


def read_generation_config(directory: Path, tokenizer: Any, ctx_size: int) -> GenerationConfig:
    """That of a model whose sequences may have `ctx_size` tokens."""
    path = directory / "generation_config.json"
    try:
        said = json.loads(path.read_bytes())
        if not isinstance(said, dict):
            raise ValueError(f"it holds {said!r:.60}, and no object")
    except FileNotFoundError:
        return GenerationConfig()
    except (OSError, ValueError, RecursionError) as error:
        return GenerationConfig(
            notes=[f"{path} cannot be read ({_why(error)}): the model is sampled as others are."]
        )
    odd: list[str] = []
    sampling = _filters(said, odd) | _penalty(said, odd) | _stops(said, odd)
    ends = read_token_ids(said["eos_token_id"], tokenizer, odd) if "eos_token_id" in said else None
    undone = [f"{name} {said[name]!r:.40}" for name, off in UNDONE.items() if _asks(said.get(name), off)]
    lengths = ((name, _number(said.get(name))) for name in LENGTHS)
    undone += [f"{name} {most:g}" for name, most in lengths if most is not None and most < ctx_size]
    notes = []
    if odd:
        notes.append(f"{path} is read without what cannot be meant: {', '.join(odd)}.")
    if undone:
        notes.append(f"{path} also asks for what dali leaves out: {', '.join(undone)}.")
    return GenerationConfig(sampling, ends, notes)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or reason(error)


def read_token_ids(said: Any, tokenizer: Any, odd: list[str]) -> list[int]:
    """The tokens that eos_token_id names: a number or several, or their texts; none for -1 and null. What else it holds is added
    to `odd`."""
    found: dict[int, None] = {}
    for one in _flat(said):
        token = tokenizer.get_vocab().get(one) if isinstance(one, str) else _number(one)
        if token is not None and token == int(token) and 0 <= token < len(tokenizer):
            found[int(token)] = None
        elif one is not None and token != -1:
            odd.append(f"eos_token_id {one!r:.40}")
    return list(found)


def _filters(said: dict[str, Any], odd: list[str]) -> dict[str, Any]:
    """The values that choose among tokens, where the file samples. Greedy models are sampled as those that say nothing: a chat
    that repeats itself is no default."""
    given = {name: said[name] for name in OFF if said.get(name) is not None}
    samples = said.get("do_sample")
    if not (bool(given) if samples is None else samples):
        return {}
    sampling: dict[str, Any] = dict(OFF)
    for name, value in given.items():
        number = _number(value)
        if number is not None and 0 <= number <= MOST[name] and (name != "top_k" or number == int(number)):
            sampling[name] = int(number) if name == "top_k" else float(number)
        elif number is None or number >= 0 or name == "temperature":
            odd.append(f"{name} {value!r:.40}")
    return sampling


def _penalty(said: dict[str, Any], odd: list[str]) -> dict[str, Any]:
    """transformers' penalty looks at all tokens, the prompt's included."""
    value = said.get("repetition_penalty")
    number = _number(value)
    if number is not None and number > 0:
        return {} if number == 1 else {"repeat_penalty": float(number), "repeat_last_n": -1}
    if value is not None:
        odd.append(f"repetition_penalty {value!r:.40}")
    return {}


def _stops(said: dict[str, Any], odd: list[str]) -> dict[str, Any]:
    value = said.get("stop_strings")
    stops = [value] if isinstance(value, str) else value
    if not stops:
        return {}
    if isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops):
        return {"stop": tuple(stops)}
    odd.append(f"stop_strings {value!r:.40}")
    return {}


def _asks(value: Any, off: tuple[Any, ...]) -> bool:
    """Whether a value asks for something."""
    return value not in (None, False, "", [], {}, *off)


def _number(value: Any) -> int | float | None:
    """A finite number, also one in quotes."""
    try:
        number = float(value) if isinstance(value, str) else value
        finite = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    except (ValueError, OverflowError):
        return None
    return number if finite else None


def _flat(value: Any, depth: int = 0) -> Iterator[Any]:
    """What lists hold, and lists in them."""
    if isinstance(value, list) and depth < 3:
        for one in value:
            yield from _flat(one, depth + 1)
    else:
        yield value
