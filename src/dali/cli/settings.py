"""Where the values of a verb's flags come from.

The command line, else DALI_<FLAG> in the environment, else the --config file, else nothing: the verb's own
default. All three hold text (YAML is read as such), so one rule makes the values of it, and one error says
where a bad one stood.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NoReturn

import yaml

from dali.cli.options import OPTIONS, SWITCH, Option
from dali.errors import UsageError

ALWAYS = ("config", "log-level", "verbose")

Texts = list[tuple[str, str]]
"""What was given for one flag: (text, origin) each."""


class Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong as all of dali does."""

    def error(self, message: str) -> NoReturn:
        fix = f"See `{self.prog} --help`."
        words = {word.partition("=")[0] for word in message.rstrip(".").split()}
        if {"-m", "-p"} & words:  # llama.cpp's
            fix = f"Model and prompt come without a flag: `dali run model.gguf hello`. {fix}"
        elif {"--device", "--vram"} & words:
            fix = f"Only `dali run` takes an accelerator; `dali simulate` models one with --profile. {fix}"
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", fix)


@dataclass(frozen=True)
class Verb:
    """What a verb takes. `flags`: heading -> names in OPTIONS, or of flags that mean something of the verb's `own`."""

    name: str
    description: str
    flags: dict[str, tuple[str, ...]]
    words: str = ""  # its arguments that are no flags, as usage shows them
    own: tuple[Option, ...] = ()

    def settings(self, arguments: Sequence[str]) -> SimpleNamespace:
        """Each flag's value under its key, and `words`: list[str]. UsageError: what cannot be meant."""
        options = [self._option(name) for names in (*self.flags.values(), ALWAYS) for name in names]
        end = arguments.index("--") if "--" in arguments else len(arguments)
        if "-ngl" in arguments[:end]:  # llama.cpp's; argparse reads -n gl
            raise UsageError(
                "There is no -ngl: dali shares out experts itself, not layers.",
                "Leave it out; `dali run` takes --device for the accelerator and --vram for its memory.",
            )
        given = self._parser().parse_intermixed_args(arguments[:end])
        texts = {option.key: _from_flags(option, given) or _from_environment(option) for option in options}
        for file, _ in texts["config"]:
            for key, found in _read_config(file).items():
                if not texts.get(key):
                    texts[key] = found
        settings = SimpleNamespace(words=[*getattr(given, "words", []), *arguments[end + 1 :]])
        for option in options:
            values = tuple(option.read(text, origin) for text, origin in texts[option.key])
            value = values if option.repeatable else values[0] if values else option.absent
            setattr(settings, option.key, value)
        return settings

    def _option(self, name: str) -> Option:
        return next((option for option in self.own if option.name == name), None) or OPTIONS[name]

    def _parser(self) -> Parser:
        """Collects the text of each flag, and the words between them."""
        parser = Parser(
            f"dali {self.name}",
            " ".join(filter(None, ["dali", self.name, self.words, "[flags]"])),
            self.description,
            "Each flag may also stand in the environment, --top-k as DALI_TOP_K, or in a --config file.",
            allow_abbrev=False,
            add_help=False,
        )
        if self.words:
            parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        for heading, names in (*self.flags.items(), ("other", ALWAYS)):
            group = parser.add_argument_group(heading)
            for option in map(self._option, names):
                flags = [flag for flag in (option.short, f"--{option.name}") if flag]
                if option.kind is SWITCH:
                    action = group.add_argument(*flags, action="append_const", const="true")
                else:
                    action = group.add_argument(*flags, action="append", metavar=option.kind.metavar)
                action.dest, action.help = option.key, option.help
        group.add_argument("-h", "--help", action="help", help="show this")
        return parser


def _from_flags(option: Option, given: argparse.Namespace) -> Texts:
    texts = getattr(given, option.key) or []
    return [(text, f"--{option.name}") for text in (texts if option.repeatable else texts[-1:])]


def _from_environment(option: Option) -> Texts:
    text = os.environ.get(option.variable)
    return [(text, option.variable)] if text else []


def _read_config(file: str) -> dict[str, Texts]:
    """Key -> texts of a YAML file, in which every flag of every verb may stand."""
    try:
        with open(file, encoding="utf-8") as stream:
            entries = yaml.load(stream, yaml.BaseLoader) or {}  # all its scalars stay text
        if not isinstance(entries, dict):
            raise ValueError("it holds no flags")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        problem = f"Cannot read the config file {file} ({reason})."
        raise UsageError(problem, "Give a YAML file with one flag a line, as `temp: 0.7`.") from error
    found: dict[str, Texts] = {}
    for name, entry in entries.items():
        option = OPTIONS.get(str(name).replace("_", "-"))
        if option is None or option.name == "config":
            known = ", ".join(sorted(OPTIONS.keys() - {"config"}))
            raise UsageError(f"Unknown flag {name!r} in {file}.", f"Known flags: {known}.")
        texts = entry if option.repeatable and isinstance(entry, list) else [entry]
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{name} in {file} cannot be {entry!r}.", f"Give {option.kind.expected}.")
        found[option.key] = [(text, f"{name} in {file}") for text in texts if text]
    return found
