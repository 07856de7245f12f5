"""Tools for models whose chat templates know of none: told in words of dali's own, and called as Hermes does, which models of any
maker are likeliest to have seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dali.conversation import Message
from dali.engine.text.calls.tagged_json import FORMS

OPENING, CLOSING = "<tool_call>", "</tool_call>"
FORM = next(form for form in FORMS if form.marks == (OPENING, CLOSING))
BEFORE = """\
You may call functions to help with what you are asked. Each is described by a JSON object:
<tools>
"""
AFTER = f"""
</tools>

To call one, write its name and its arguments as a JSON object between these tags, as many times as you need, and end your turn:
{OPENING}
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
{CLOSING}
What it returns is told between <tool_response> and </tool_response>."""


def takes_tools(template: str) -> bool:
    """Whether a chat template does so itself."""
    return "tools" in template


def in_words(template: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """`messages` for a template that takes no tools: it would drop what they are, and what was called unless it knows calls."""
    said = [*messages] if "tool_calls" in template else [*_in_words(messages)]
    if not tools:
        return said
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return [{"role": "system", "content": f"{BEFORE}{described}{AFTER}"}, *said]


def _in_words(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            yield {"role": "user", "content": content}
        elif calls := message.get("tool_calls"):
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            yield rest | {"content": "\n".join([*filter(None, [message.get("content")]), *map(_call, calls)])}
        else:
            yield message


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{OPENING}\n{{"name": {json.dumps(function["name"])}, "arguments": {text}}}\n{CLOSING}'
