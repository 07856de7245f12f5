"""Mistral's: `[TOOL_CALLS]` and an array of JSON, or `[TOOL_CALLS]name[ARGS]{...}` for each call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.json_call import json_arguments, write_json_call
from dali.engine.text.calls.source import Source
from dali.engine.text.calls.tagged_json import json_calls
from dali.engine.text.piece import Piece

OPEN, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


def read(source: Source) -> Iterator[Piece | None]:
    while True:
        yield from source.text(OPEN)
        if source.met is None:
            return
        yield from source.skip()
        if source.held.startswith(("[", "{")):
            yield from json_calls(source)
            yield from source.none()
            continue
        name = (yield from source.all_until(ARGUMENTS, ID, "{")).strip()
        if source.met is None or not name:
            yield from source.none()
            continue
        if source.met == ID:
            yield from source.all_until(ARGUMENTS, "{")
        if source.met == "{":
            source.held = "{" + source.held
        yield source.call(name)
        yield from json_arguments(source)


def write(lark: Lark, functions: Sequence[Function], template: str) -> Written:
    if ARGUMENTS not in template:
        return Written(OPEN, write_json_call(lark, functions), "[", ", ", "]", (OPEN,))
    call = lark.one_of(f"{lark.text(one.name + ARGUMENTS)} {one.json(lark)}" for one in functions)
    return Written(OPEN, call, between=OPEN, reads=(OPEN,))


FORMS = [Form(lambda template: OPEN in template, (OPEN, ARGUMENTS, ID), read, write)]
