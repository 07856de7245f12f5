"""A verb of the command, and where the values of its flags come from.

The command line, else DALI_<FLAG> in the environment, else the --config file, else nothing: the verb's own
default. All three hold text (YAML is read as such), so one rule makes the values of it, and one error says
where a bad one stood.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from dali.cli.flags import always
from dali.cli.flags.config import read_config
from dali.cli.flags.near import near_flag
from dali.cli.flags.option import SWITCH, Option, options_of
from dali.errors import UsageError

Settings = TypeVar("Settings", bound=always.Always)

Texts = list[tuple[str, str]]
"""What was given for one flag: (text, origin) each."""


class Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong as all of dali does."""

    flags: tuple[str, ...] = ()  # that an unknown one may have been meant for

    def error(self, message: str) -> NoReturn:
        fix = f"See `{self.prog} --help`."
        words = {word.partition("=")[0] for word in message.rstrip(".").split()}
        if {"-m", "-p", "--model", "--prompt"} & words:  # llama.cpp's
            fix = f"Model and prompt come without a flag: `dali run model.gguf hello`. {fix}"
        elif {"--device", "--vram"} & words:
            fix = f"`dali run`, `serve`, `bench` and `trace` take one; `dali simulate` models one with --profile. {fix}"
        elif message.startswith("unrecognized"):
            meant = [near_flag(word[2:], self.flags) for word in sorted(words) if word.startswith("--")]
            fix = f"Did you mean --{meant[0]}? {fix}" if meant and meant[0] else fix
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", fix)


class _Collect(argparse.Action):
    """Keeps each text that a flag is given, with the flag's long name, as it was written, for its origin."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, value: Any, name: str | None = None
    ) -> None:
        if name is None or not name.startswith("--"):
            name = next(long for long in self.option_strings if long.startswith("--"))
        text = "true" if self.nargs == 0 else value
        setattr(given, self.dest, [*(getattr(given, self.dest) or []), (text, name)])


LAYERS = {"-ngl", "--n-gpu-layers", "--gpu-layers"}  # llama.cpp's; argparse reads the first as -n gl


@dataclass(frozen=True)
class Verb(Generic[Settings]):
    """What a verb takes: the flags of `holds`, a dataclass of settings, and in which order help shows their headings."""

    name: str
    description: str
    holds: type[Settings]
    headings: tuple[str, ...]
    words: str = ""  # its arguments that are no flags, as usage shows them

    @property
    def options(self) -> tuple[Option, ...]:
        return options_of(self.holds)

    def settings(self, arguments: Sequence[str]) -> Settings:
        """Each flag's value. UsageError: what cannot be meant."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        if layers := LAYERS.intersection(word.partition("=")[0] for word in arguments[:end]):
            raise UsageError(
                f"There is no {min(layers)}: dali shares out experts itself, not layers.",
                "Leave it out; `dali run` takes --device for the accelerator and --vram for its memory.",
            )
        given = self._parser().parse_intermixed_args(list(_with_values(arguments[:end], self.options)))
        texts = {
            option.key: _from_flags(option, given) or _from_environment(option) for option in self.options
        }
        for file, _ in texts["config"]:
            for key, found in read_config(file, self.options).items():
                if not texts[key]:
                    texts[key] = found
        values: dict[str, Any] = {"words": [*getattr(given, "words", []), *arguments[end + 1 :]]}
        values["origins"] = {key: found[-1][1] for key, found in texts.items() if found}
        for option in self.options:
            read = tuple(option.read(text, origin) for text, origin in texts[option.key])
            if read:
                values[option.key] = read if option.repeatable else read[0]
        return self.holds(**values)

    def _parser(self) -> Parser:
        """Collects the texts of each flag, and the words between them."""
        parser = Parser(
            f"dali {self.name}",
            " ".join(filter(None, ["dali", self.name, self.words, "[flags]"])),
            self.description,
            "Each flag may also stand in the environment, --top-k as DALI_TOP_K, or in a --config file"
            + ("; there MODEL is DALI_MODEL, and `model`." if "MODEL" in self.words else "."),
            allow_abbrev=False,
            add_help=False,
        )
        parser.flags = tuple(name for option in self.options if not option.is_word for name in option.names)
        if self.words:
            parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        for heading in (*self.headings, always.HEADING):
            group = parser.add_argument_group(heading)
            for option in self.options:
                if option.heading == heading and not option.is_word:
                    _add(group, option)
        group.add_argument("-h", "--help", action="help", help="show this")
        return parser


def refuse_unheeded(settings: always.Always, unheeded: Callable[[str], bool], why: str) -> None:
    """UsageError for a flag of the command line whose key is `unheeded`: the environment and a file may speak to other verbs."""
    for key, origin in settings.origins.items():
        if origin.startswith("--") and unheeded(key):
            raise UsageError(f"{why}, so no {origin}.", "Leave it out.")


def _with_values(arguments: Sequence[str], options: Sequence[Option]) -> Iterator[str]:
    """The arguments, with a value for each flag that may go without one and is followed by what is none."""
    takes = {f"--{option.name}": option.kind.takes for option in options if option.kind.takes is not None}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        yield f"{word}=true" if word in takes and not takes[word](following) else word


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    flags = [*filter(None, [option.short]), *(f"--{name}" for name in option.names)]
    nargs, metavar = (0, None) if option.kind is SWITCH else (None, option.kind.metavar)
    help = option.help if option.variable is None else f"{option.help}; in the environment {option.variable}"
    group.add_argument(*flags, action=_Collect, dest=option.key, nargs=nargs, metavar=metavar, help=help)


def _from_flags(option: Option, given: argparse.Namespace) -> Texts:
    texts: Texts = getattr(given, option.key, None) or []
    return texts if option.repeatable else texts[-1:]


def _from_environment(option: Option) -> Texts:
    given = ((os.environ.get(variable), variable) for variable in option.variables)
    return next(([(text, variable)] for text, variable in given if text), [])
