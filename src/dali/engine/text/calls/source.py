"""An answer's text as the form of its calls is read off it, wherever its pieces are cut."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

from dali.engine.text.calls.json_value import JsonValue
from dali.engine.text.piece import Call, Piece
from dali.engine.text.stop import overlap

Schema = Mapping[str, Any]
REFERENCES = 8  # one after the other that are followed


class Source:
    """What a form reads: generators that yield what is final, and None where more text has to come first.

    A call that turns out to be none before it had a name is said as text, from its opening mark on.
    """

    def __init__(self, tools: Sequence[Schema] = ()) -> None:
        """tools: JSON schemas of what may be called."""
        self.held = ""  # not yet read
        self.over = False  # no more text will come
        self.met: str | None = None  # what the last reading found, None where it found nothing
        self.begun = self.ended = 0  # calls
        self._tools = {name: _parameters(tool) for tool in tools if (name := _name(tool))}
        self._open: str | None = None  # what was read of a call that has no name yet

    @property
    def names(self) -> Collection[str]:
        return self._tools.keys()

    def schema(self, name: str, argument: str) -> Schema | None:
        """Of a tool's argument; None where it has none."""
        found = self._tools.get(name, {}).get(argument)
        return found if isinstance(found, Mapping) else None

    def text(self, *marks: str) -> Iterator[Piece | None]:
        """Text up to the first of `marks`, where a call may begin; the calls before it are complete."""
        self.ended = self.begun
        for part in self.until(*marks):
            yield None if part is None else Piece(part)
        self._open = self.met

    def until(self, *marks: str) -> Iterator[str | None]:
        """What comes before the first of `marks`, which is read too."""
        while True:
            found = [(at, mark) for mark in marks if (at := self.held.find(mark)) >= 0]
            if found:
                at, self.met = min(found)
                before = self.read(at)
                self.read(len(self.met))
                if before:
                    yield before
                return
            kept = 0 if self.over else max(overlap(self.held, mark) for mark in marks)
            if len(self.held) > kept:
                yield self.read(len(self.held) - kept)
            if self.over:
                self.met = None
                return
            yield None

    def all_until(self, *marks: str) -> Generator[None, None, str]:
        """The same in one piece."""
        parts = []
        for part in self.until(*marks):
            if part is None:
                yield None
            else:
                parts.append(part)
        return "".join(parts)

    def take(self, *marks: str) -> Generator[None, None, bool]:
        """Whether one of `marks` comes next, white space aside; it is read, and else nothing but the white space."""
        while True:
            self.read(len(self.held) - len(self.held.lstrip()))
            self.met = next((mark for mark in marks if self.held.startswith(mark)), None)
            if self.met is not None:
                self.read(len(self.met))
                return True
            if self.over or not any(mark.startswith(self.held) for mark in marks):
                return False
            yield None

    def skip(self) -> Iterator[None]:
        """Wait for a letter that is no white space."""
        while True:
            self.read(len(self.held) - len(self.held.lstrip()))
            if self.held or self.over:
                return
            yield None

    def value(self) -> Iterator[str | None]:
        """A JSON value, piece by piece. `met`: its end; None where the text ends before."""
        yield from self.skip()
        value = JsonValue()
        while not (self.over and not self.held):
            read, out = value.push(self.held)
            self.read(read)
            if out:
                yield out
            if value.ended:
                self.met = ""
                return
            if not self.over:
                yield None
        self.met = None

    def whole_value(self) -> Generator[None, None, str | None]:
        """The same in one piece; None where the text ends before it does."""
        parts = []
        for part in self.value():
            if part is None:
                yield None
            else:
                parts.append(part)
        return None if self.met is None else "".join(parts)

    def call(self, name: str) -> Piece:
        """A call begins; the one before it is complete."""
        self._open = None
        self.ended = self.begun
        self.begun += 1
        return Piece(call=Call(self.begun - 1, name))

    def arguments(self, text: str) -> Piece:
        """More of the arguments of the call under way."""
        return Piece(call=Call(self.begun - 1, "", text))

    def begin(self) -> None:
        """A call may begin here, without a mark."""
        self._open = ""

    def drop(self) -> None:
        """The mark that was met is of the form, and no text."""
        self._open = None

    def none(self) -> list[Piece]:
        """What was read of the call that is to begin, as text: it is none."""
        said, self._open = self._open, None
        return [Piece(said)] if said else []

    def read(self, count: int) -> str:
        taken, self.held = self.held[:count], self.held[count:]
        if self._open is not None:
            self._open += taken
        return taken


def _name(tool: Schema) -> str:
    function = tool.get("function", tool)
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _parameters(tool: Schema) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    return properties_of(parameters) if isinstance(parameters, Mapping) else {}


def properties_of(parameters: Schema) -> dict[str, Any]:
    """The schemas of arguments, where one only refers to another that other one."""
    whole = resolved(parameters, parameters)
    found = whole.get("properties")
    properties = found if isinstance(found, Mapping) else {}
    return {str(name): resolved(schema, parameters) for name, schema in properties.items()}


def resolved(schema: Any, root: Schema) -> Any:
    """`schema` with what it refers to within `root` put in its place, and that of its choices. What cannot be found stays."""
    schema = _followed(schema, root)
    for union in ("anyOf", "oneOf"):
        if isinstance(schema, Mapping) and isinstance(schema.get(union), list):
            schema = {**schema, union: [_followed(choice, root) for choice in schema[union]]}
    return schema


def _followed(schema: Any, root: Schema) -> Any:
    for _ in range(REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        found: Any = root
        for part in reference.split("/")[1:]:
            found = (
                found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
            )
        if not isinstance(found, Mapping):
            break
        schema = {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema
