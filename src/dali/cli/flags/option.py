"""One flag: its name, what its value must be, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from dali.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """What a value must be. `parse` raises ValueError or UsageError for any other text; `near`: what others call a value."""

    metavar: str
    expected: str
    parse: Callable[[str], Any]
    near: Mapping[str, str] = field(default_factory=dict)
    takes: Callable[[str], bool] | None = (
        None  # a flag without a value is "true", unless this is so of the next word
    )


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError
    return text.lower() in ("1", "true", "yes", "on")


SWITCH = Kind("", "true or false", _true_or_false)  # a flag of this kind takes no value on the command line


@dataclass(frozen=True)
class Option:
    """One flag: `--name`, `DALI_NAME` in the environment, `name` in a config file; so, too, by the name `also`."""

    key: str  # the field of a verb's settings that holds the value
    heading: str  # the part of the help it stands in
    kind: Kind
    help: str
    short: str | None = None
    also: str | None = None
    repeatable: bool = False
    is_word: bool = False  # no flag: on the command line it is an argument of its own
    variable: str | None = None  # in the environment, where DALI_NAME means something else

    @property
    def name(self) -> str:
        return self.key.rstrip("_").replace("_", "-")  # import_, as `import` is Python's own word

    @property
    def names(self) -> tuple[str, ...]:
        """The better name first."""
        return (self.name, self.also) if self.also else (self.name,)

    @property
    def variables(self) -> tuple[str, ...]:
        if self.variable is not None:
            return (self.variable,)
        return tuple(f"DALI_{name.replace('-', '_').upper()}" for name in self.names)

    def read(self, text: str, origin: str) -> Any:
        """The value that `text` says; UsageError names where it came from."""
        try:
            return self.kind.parse(text)
        except (ValueError, UsageError):
            near = self.kind.near.get(text.lower())
            meant = f"Did you mean {near}? " if near else ""
            raise UsageError(f"{origin} cannot be {text!r}.", f"{meant}Give {self.kind.expected}.") from None


def as_flag(parameter: str) -> str:
    """What the command line calls a parameter of the library."""
    return f"--{'system' if parameter == 'policy' else parameter.replace('_', '-')}"


def flag(
    heading: str,
    kind: Kind,
    help: str,
    short: str | None = None,
    *,
    also: str | None = None,
    repeatable: bool = False,
    is_word: bool = False,
    variable: str | None = None,
) -> Any:
    """A field of a verb's settings that holds a flag's value; (), False or None where nobody gave one. The flag has the field's
    name, with dashes."""
    option = partial(
        Option,
        heading=heading,
        kind=kind,
        help=help,
        short=short,
        also=also,
        repeatable=repeatable,
        is_word=is_word,
        variable=variable,
    )
    absent = () if repeatable else False if kind is SWITCH else None
    return field(default=absent, metadata={"option": option})


def options_of(settings: type[Any]) -> tuple[Option, ...]:
    """The flags that a class of settings holds."""
    return tuple(
        entry.metadata["option"](entry.name) for entry in fields(settings) if "option" in entry.metadata
    )
