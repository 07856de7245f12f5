"""What a form of calls is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece
from dali.errors import UsageError

NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Function:
    """A tool as a grammar of calls is written for it. `strict`: its arguments follow `parameters`, a JSON schema, to the letter;
    else as far as grammars can."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False

    def json(self, lark: Lark) -> str:
        """Its arguments as JSON."""
        return lark.json({"type": "object", **self.parameters}, lenient=not self.strict)


@dataclass(frozen=True)
class Written:
    """How a group of calls is written: `begin first call (between call)* end`, all but the expression `call` as text. `reads`:
    texts that the form takes for the beginning of a call, or of what is around one."""

    begin: str
    call: str
    first: str = ""
    between: str = ""
    end: str = ""
    reads: tuple[str, ...] = ()

    def after_begin(self, lark: Lark, most: int | None) -> str:
        """The group without what it begins with. most: how many calls it may have."""
        more = "" if most == 1 else f"({lark.text(self.between)} {self.call})*"
        return f"{lark.text(self.first)} {self.call} {more} {lark.text(self.end)}"

    def group(self, lark: Lark, most: int | None) -> str:
        return f"{lark.text(self.begin)} {self.after_begin(lark, most)}"


Write = Callable[[Lark, Sequence[Function], str], Written]


@dataclass(frozen=True)
class Form:
    """How models write calls. `fits`: whether a chat template asks for it; `marks`: what divides it, as tokens of their own in
    many vocabularies; `read`: takes the calls out of an answer; `write`: the grammar of the calls that a template asks for, None
    where nobody has written it down. What is of that grammar, `read` reads as it was meant."""

    fits: Callable[[str], bool]
    marks: tuple[str, ...]
    read: Callable[[Source], Iterator[Piece | None]]
    write: Write | None = None


def functions_of(
    tools: Sequence[Mapping[str, Any]], strict: frozenset[str] = frozenset(), only: str | None = None
) -> list[Function]:
    """only: the one tool that may be called. UsageError: a name that not every form can write."""
    found = []
    for tool in tools:
        function = tool.get("function", tool)
        name, parameters = str(function.get("name")), function.get("parameters") or {}
        if only not in (None, name):
            continue
        if not NAME.fullmatch(name):
            raise UsageError(
                f"The tool {name[:60]!r} cannot be asked for by its name.",
                "Use letters, digits, _, - and . alone.",
            )
        found.append(Function(name, parameters, name in strict))
    return found
