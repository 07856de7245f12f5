"""Arguments that a model writes as text between tags, as the JSON that a tool's schema asks for."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from dali.engine.text.calls.json_value import JsonValue
from dali.engine.text.calls.source import Schema, Source
from dali.engine.text.piece import Piece
from dali.engine.text.stop import overlap

BREAK = "\n"  # around a value, of which it is no part


class Values:
    """Writes the arguments of one call: begin, its arguments, end."""

    def __init__(self, source: Source, tool: str) -> None:
        self._source = source
        self._tool = tool
        self._count = 0

    def argument(
        self, name: str, closing: tuple[str, ...], padded: bool, text: bool = False
    ) -> Iterator[Piece | None]:
        """One argument, whose text ends before `closing`. padded: there may be a line break around it; text: the model says that
        it is a string. A string is given out as it
        comes, anything else when it is complete."""
        source = self._source
        head = ("{" if not self._count else ", ") + json.dumps(name, ensure_ascii=False) + ": "
        self._count += 1
        schema = source.schema(self._tool, name)
        if not text and types_of(schema) != {"string"}:
            raw = yield from self._raw(closing)
            if source.met is not None:
                yield source.arguments(head + json_of(_trimmed(raw) if padded else raw, schema))
            return
        yield source.arguments(f'{head}"')
        held, begun = "", not padded
        for part in source.until(*closing):
            if part is None:
                yield None
                continue
            if source.over:  # cut off, within the closing tag perhaps
                part = part[: len(part) - max(overlap(part, mark) for mark in closing)]
            held += part if begun else part.removeprefix(BREAK)
            begun = True
            kept = 1 if padded and held.endswith(BREAK) else 0
            said, held = held[: len(held) - kept], held[len(held) - kept :]
            if said:
                yield source.arguments(_letters(said))
        if source.met is not None:
            yield source.arguments('"')

    def _raw(self, closing: tuple[str, ...]) -> Generator[None, None, str]:
        """All up to `closing`, of which strings in JSON may speak."""
        source = self._source
        raw = yield from source.all_until(*closing)
        mark, whole = source.met, raw
        while source.met is not None and _within_string(whole):
            whole += source.met
            whole += yield from source.all_until(*closing)
        if mark is None or whole == raw or (source.met is not None and _is_json(whole)):
            return whole
        source.held = whole[len(raw) + len(mark) :] + (source.met or "") + source.held
        source.met = mark
        return raw

    def end(self) -> Piece:
        return self._source.arguments("}" if self._count else "{}")


def json_of(raw: str, schema: Schema | None) -> str:
    """A value as JSON: of the types that the schema names, where it can be read so, else as text."""
    types, text = types_of(schema), raw.strip()
    if types == {"boolean"} and text.lower() in ("true", "false"):
        return text.lower()
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "null" if text == "None" and "null" in types else json.dumps(raw, ensure_ascii=False)
    kinds = _kinds(value)
    as_read = bool(kinds & types) or "string" not in types if types else "string" not in kinds
    return json.dumps(value if as_read else raw, ensure_ascii=False)


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN is no JSON


def types_of(schema: Any) -> set[str]:
    """The types that a schema names; none where it leaves them open."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    several = named if isinstance(named, list) else [named]
    types = {one for one in several if isinstance(one, str)}
    for union in ("anyOf", "oneOf"):
        choices = schema.get(union)
        for choice in choices if isinstance(choices, list) else ():
            types |= types_of(choice)
    if not types and isinstance(schema.get("enum"), list):
        types = {kind for value in schema["enum"] for kind in _kinds(value)}
    if not types and "const" in schema:
        types = _kinds(schema["const"])
    return types


def _kinds(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    return {"string"} if isinstance(value, str) else {"array"} if isinstance(value, list) else {"object"}


def _within_string(raw: str) -> bool:
    """Whether JSON is not over, and in the midst of a string."""
    text, value = raw.lstrip(), JsonValue()
    value.push(text)
    return text.startswith(("[", "{", '"')) and value.within_string


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _trimmed(raw: str) -> str:
    return raw.removeprefix(BREAK).removesuffix(BREAK)


def _letters(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
