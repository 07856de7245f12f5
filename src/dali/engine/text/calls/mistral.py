"""Mistral's: `[TOOL_CALLS]` and an array of JSON, or `[TOOL_CALLS]name[ARGS]{...}` for each call."""

from __future__ import annotations

from collections.abc import Iterator

from dali.engine.text.calls.form import Form
from dali.engine.text.calls.json_call import json_arguments
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


FORMS = [Form(lambda template: OPEN in template, (OPEN, ARGUMENTS, ID), read)]
