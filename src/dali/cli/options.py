"""Every flag once: its name, its meaning, and what its value must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dali.errors import UsageError
from dali.hardware import profile
from dali.policies import registry
from dali.units import parse_size

# The engine's own lists, written out because importing it takes seconds; a test compares them.
QUANTS = ("auto", "f32", "f16", "bf16", "w8", "w4", "mxfp4", "q4k")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Kind:
    """What a value must be. `parse` raises ValueError or UsageError for any other text."""

    metavar: str
    expected: str
    parse: Callable[[str], Any]


@dataclass(frozen=True)
class Option:
    """One flag: `--name`, `DALI_NAME` in the environment, `name` in a config file."""

    name: str
    kind: Kind
    help: str
    short: str | None = None
    repeatable: bool = False

    @property
    def key(self) -> str:
        """The attribute that holds the value."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return f"DALI_{self.key.upper()}"

    @property
    def absent(self) -> Any:
        """The value where nobody gave one."""
        return () if self.repeatable else False if self.kind is SWITCH else None

    def read(self, text: str, origin: str) -> Any:
        """The value that `text` says; UsageError names where it came from."""
        try:
            return self.kind.parse(text)
        except (ValueError, UsageError):
            raise UsageError(f"{origin} cannot be {text!r}.", f"Give {self.kind.expected}.") from None


def whole(least: int, none: int | None = None, meaning: str = "") -> Kind:
    """A whole number from `least`, or `none`: what llama.cpp writes for `meaning`, here as good as no flag."""

    def parse(text: str) -> int | None:
        value = int(text)
        if value == none:
            return None
        if value < least:
            raise ValueError
        return value

    expected = f"a whole number from {least}"
    return Kind("N", expected if none is None else f"{expected}, or {none} for {meaning}", parse)


def _number(metavar: str, most: float, expected: str) -> Kind:
    def parse(text: str) -> float:
        value = float(text)
        if not 0 <= value <= most or math.isinf(value):
            raise ValueError
        return value

    return Kind(metavar, expected, parse)


def _one_of(names: tuple[str, ...]) -> Kind:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind("NAME", f"one of {', '.join(names)}", parse)


def _policy(kind: registry.Kind, decides: str) -> Option:
    names, default = registry.names(kind), registry.DEFAULT[kind]
    return Option(kind, _one_of(tuple(names)), f"{decides}: {', '.join(names)} (default: {default})")


def _device(text: str) -> str:
    if text.startswith("sim:"):
        profile.load(text.removeprefix("sim:"))
    elif not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ValueError
    return text


def _profile(text: str) -> str:
    profile.load(text)
    return text


def _some_text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError
    return text.lower() in ("1", "true", "yes", "on")


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise ValueError
    return counts


def _or_else(value: float) -> str:
    """The default of a sampling flag; the engine's own values, written out as QUANTS are."""
    return f"(default: the model's, or else {value})"


SWITCH = Kind("", "true or false", _true_or_false)
TEXT = Kind("TEXT", "some text", _some_text)
NAMES = Kind(
    "NAMES",
    "names with commas between them",
    lambda text: tuple(_some_text(name) for name in text.split(",")),
)
COUNTS = Kind("N", "whole numbers from 1, with commas between them", _counts)
FILE = Kind("FILE", "the name of a file", _some_text)
JINJA = Kind("JINJA", "a Jinja template or the file that holds one", _some_text)
DEVICE = Kind("DEVICE", f"cpu, cuda, cuda:N, or sim: and one of {', '.join(profile.known())}", _device)
PROFILE = Kind("NAME", f"one of {', '.join(profile.known())}, or the file of one", _profile)
SIZE = Kind("SIZE", "a size like 8GiB or 500MB", parse_size)
TEMPERATURE = _number("T", math.inf, "0 for the likeliest tokens, or a number such as 0.7")
PROBABILITY = _number("P", 1, "a number from 0 to 1")

OPTIONS = {
    option.name: option
    for option in (
        Option(
            "predict",
            whole(1, -1, "no limit"),
            "most tokens to answer with (default, and -1: no limit)",
            "-n",
        ),
        Option("temp", TEMPERATURE, f"temperature; 0 always takes the likeliest token {_or_else(0.8)}"),
        Option("top-k", whole(0), f"sample from the N likeliest tokens; 0 turns it off {_or_else(40)}"),
        Option(
            "top-p",
            PROBABILITY,
            f"sample from the likeliest tokens that make up P; 1 turns it off {_or_else(0.95)}",
        ),
        Option(
            "min-p",
            PROBABILITY,
            f"drop tokens less than P times as likely as the first; 0 turns it off {_or_else(0.05)}",
        ),
        Option(
            "seed", whole(0, -1, "a random one"), "makes sampling repeatable (default, and -1: a random one)"
        ),
        Option("stop", TEXT, "end the answer before TEXT; may be repeated", repeatable=True),
        Option("system-prompt", TEXT, "what the model is told before the first message", "-sys"),
        Option("chat-template", JINJA, "a template, or its file, instead of the model's own"),
        Option("raw", SWITCH, "give the prompt to the model as it is, without a chat template"),
        Option(
            "ctx-size",
            whole(2, 0, "all the model can"),
            "tokens a conversation may have (default, and 0: all the model can)",
            "-c",
        ),
        Option(
            "quant", _one_of(QUANTS), f"format of the experts in memory: {', '.join(QUANTS)} (default: auto)"
        ),
        Option(
            "dtype", _one_of(DTYPES), f"of everything but the experts: {', '.join(DTYPES)} (default: auto)"
        ),
        Option("ram", SIZE, "host memory to plan with (default: what is free)"),
        Option("threads", whole(1), "CPU threads (default: all cores)", "-t"),
        Option(
            "device",
            DEVICE,
            "cpu (default), cuda, cuda:N, or sim:PROFILE: same answers, modelled times (see --list-devices)",
        ),
        Option("vram", SIZE, "accelerator memory for experts (default: what the dense weights leave)"),
        Option(
            "profile",
            PROFILE,
            "hardware profile to plan with on cuda, by name or file; sim:PROFILE brings its own",
        ),
        _policy("assign", "where experts run"),
        _policy("prefetch", "what is fetched ahead"),
        _policy("cache", "what stays on the accelerator"),
        Option("cpu-moe", SWITCH, "all experts on the CPU: --assign cpu"),
        Option(
            "n-cpu-moe",
            whole(0),
            "experts of the first N MoE layers on the CPU, all others on the accelerator",
        ),
        Option("lossy", SWITCH, "with those parts of the policy that change the model's answers"),
        Option("list-devices", SWITCH, "say what --device can be here, and leave"),
        Option("list-policies", SWITCH, "say what --policy can be, and leave"),
        Option("offline", SWITCH, "never touch the network"),
        Option("json", SWITCH, "for machines"),
        Option("output", FILE, "the trace to write", "-o"),
        Option("prompts", FILE, "prompts, one a line (default: stdin)"),
        Option("hidden", SWITCH, "record gate inputs, embeddings and predictions too"),
        Option("batch", COUNTS, "sequences side by side in a step (default: 1)"),
        Option(
            "policy",
            NAMES,
            "policies of `dali run --list-policies` with commas between them, or all (default), their lossy parts off",
        ),
        Option(
            "cache-slots",
            NAMES,
            "residents a layer, as shares of its experts or numbers (default: 25%%,50%%)",
        ),
        Option("shape", NAMES, "whose sizes the experts have (default: own, the recorded model's)"),
        Option("tokens", whole(1), "generated tokens to replay of each trace, at most (default: all)"),
        Option("cache-only", SWITCH, "hit rates of a cache alone, without a timeline"),
        Option("html", FILE, "write a self-contained report with plots here"),
        Option("config", FILE, "YAML file that may hold any of these flags, as `temp: 0.7`"),
        Option(
            "log-level",
            _one_of(LOG_LEVELS),
            f"what to say on stderr: {', '.join(LOG_LEVELS)} (default: info)",
        ),
        Option("verbose", SWITCH, "the same as --log-level debug, which shows tracebacks too", "-v"),
    )
}
