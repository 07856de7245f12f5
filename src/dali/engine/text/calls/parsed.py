"""Forms that transformers' own parsers read: LFM2's calls in Python, Gemma 4's in its JSON. A call comes when it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dali.engine.text.calls.form import Form
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece


def form(opening: str, closing: str, field: dict[str, Any]) -> Form:
    """field: as a response template has it for calls."""
    template = {"start_anchor": opening, "fields": {"tool_calls": field}}

    def read(source: Source) -> Iterator[Piece | None]:
        while True:
            yield from source.text(opening)
            if source.met is None:
                return
            said = yield from source.all_until(closing)
            calls = [] if source.met is None else _calls(f"{opening}{said}{closing}", template)
            if not calls:
                yield from source.none()
            for name, arguments in calls:
                yield source.call(name)
                yield source.arguments(arguments)

    return Form(lambda template: opening in template, (opening, closing, *DELIMITERS), read)


def _calls(said: str, template: dict[str, Any]) -> list[tuple[str, str]]:
    from transformers.utils.chat_parsing import parse_response

    try:
        found = parse_response(said, template, prefix="").get("tool_calls")
    except Exception:  # not of the form, or of one that this version of transformers does not know
        return []
    return [call for value in (found if isinstance(found, list) else [found]) if (call := call_of(value))]


def call_of(value: Any) -> tuple[str, str] | None:
    """(name, arguments as JSON) of a call as transformers has it; None where it is none."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return None
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        return function["name"], arguments or "{}"
    return function["name"], json.dumps({} if arguments is None else arguments, ensure_ascii=False)


DELIMITERS = ('<|"|>',)
FORMS = [
    form(
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        {"open": "<|tool_call_start|>", "close": "<|tool_call_end|>", "content": "python-call-list"},
    ),
    form(
        "<|tool_call>",
        "<tool_call|>",
        {
            "open_pattern": r"<\|tool_call>call:(?P<name>[^\s{]+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": {"name": "{name}", "arguments": "{content}"},
        },
    ),
]
