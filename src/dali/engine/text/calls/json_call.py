"""A call as a JSON object: its name and its arguments."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Sequence

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Function
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece

NAMES = ("name", "tool_name")
ARGUMENTS = ("arguments", "parameters")

Reading = Generator[Piece | None, None, bool]
"""Yields what is final, None where more has to come; returns whether there was what it reads."""


def json_call(source: Source, known: Collection[str] | None = None) -> Reading:
    """{"name": ..., "arguments": {...}}; known: the names that make it a call, None for any."""
    if not (yield from source.take("{")):
        return False
    named, told, early = False, False, ""  # early: arguments that came before the name
    while (yield from source.take('"')):
        key = yield from source.all_until('"')
        if source.met is None or not (yield from source.take(":")):
            return False
        if key in NAMES and not named:
            name = _text((yield from source.whole_value()))
            if not name or (known is not None and name not in known):
                return False
            named = True
            yield source.call(name)
        elif key in ARGUMENTS and named and not told:
            told = True
            yield from json_arguments(source)
        elif key in ARGUMENTS and not told:
            early = (yield from source.whole_value()) or ""
        else:
            yield from source.whole_value()
        if not (yield from source.take(",")):
            break
    closed = yield from source.take("}")
    if named and not told and (closed or not source.over):
        yield source.arguments(_unwrapped(early))
    return named and closed


def write_json_call(
    lark: Lark,
    functions: Sequence[Function],
    keys: tuple[str, str] = (NAMES[0], ARGUMENTS[0]),
    head: str = "{",
) -> str:
    """The expression of such an object. keys: what it calls the name and the arguments; head: what it begins with."""
    name, arguments = map(json.dumps, keys)
    calls = []
    for one in functions:
        opening = lark.text(f"{head}{name}: {json.dumps(one.name)}, {arguments}: ")
        calls.append(f'{opening} {one.json(lark)} "}}"')
    return lark.one_of(calls)


def json_arguments(source: Source) -> Reading:
    """The arguments of the call under way, as they come; {} for none."""
    yield from source.skip()
    if source.held.startswith("{"):
        for part in source.value():
            yield None if part is None else source.arguments(part)
    elif (raw := (yield from source.whole_value())) is not None:
        yield source.arguments(_unwrapped(raw))
    return source.met is not None


def _unwrapped(raw: str) -> str:
    """Arguments that a model wrote as a string of JSON, or not at all."""
    text = _text(raw) if raw.startswith('"') else raw.strip()
    return "{}" if text in ("", "null") else text


def _text(raw: str | None) -> str:
    try:
        value = json.loads(raw or "", strict=False)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""
