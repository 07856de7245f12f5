"""The items of an input as messages of a conversation."""

from __future__ import annotations

import json

from dali.conversation import Message
from dali.serve.http.errors import UNSUPPORTED, ApiError, invalid
from dali.serve.http.fields import Fields

ROLES = ("system", "developer", "user", "assistant")
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
SKIPPED = (  # what another server's own tools left in a conversation; the model reads what was said of it
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "computer_call",
    "computer_call_output", "mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response", "tool_search_call",
    "tool_search_output", "compaction",
)  # fmt: skip


def messages_of(fields: Fields) -> list[Message]:
    """`instructions` and `input`. ApiError: items that are none, parts that are no text, and what is not here."""
    messages: list[Message] = []
    instructions = fields.text("instructions")
    if instructions:
        messages.append({"role": "system", "content": instructions})
    given = fields.any("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        reading = Items(messages)
        for item in fields.each("input"):
            reading.take(item)
    else:
        raise fields.wrong("input", "a string or an array of items")
    if all(message["role"] in ("system", "developer") for message in messages):
        messages.append(
            {"role": "user", "content": ""}
        )  # clients ask for nothing to see whether the server is there
    return messages


class Items:
    """Adds items to `messages`. Reasoning, text and calls of one turn are one message."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    def take(self, item: Fields) -> None:
        kind = item.text("type") or "message"
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            turn, text = self._turn(new=True), text_of(item, "content") or text_of(item, "summary")
            turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), text)))
        elif kind == "function_call":
            self._call(item, item.text("arguments") or "{}")
        elif kind == "custom_tool_call":
            self._call(item, json.dumps({"input": item.text("input") or ""}, ensure_ascii=False))
        elif kind == "local_shell_call":
            self._call(item, json.dumps(item.mapping("action") or {}, ensure_ascii=False), "local_shell")
        elif kind in ("function_call_output", "custom_tool_call_output", "local_shell_call_output"):
            result = {"role": "tool", "content": text_of(item, "output"), "tool_call_id": _call_id(item)}
            self._messages.append(result)
        elif kind not in SKIPPED:
            why = (
                "the server keeps nothing, send it whole"
                if kind == "item_reference"
                else "dali does not know it"
            )
            raise ApiError(400, f"An item of the type {kind[:40]!r}: {why}.", param="input", code=UNSUPPORTED)

    def _message(self, item: Fields) -> None:
        role = item.one_of("role", ROLES)
        if role is None:
            raise item.wrong("role", f"one of {', '.join(ROLES)}")
        if "content" not in item:
            raise item.wrong("content", "a string or an array of parts")
        text = text_of(item, "content")
        if role != "assistant":
            self._messages.append({"role": role, "content": text})
            return
        turn = self._turn()
        turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text

    def _call(self, item: Fields, arguments: str, name: str | None = None) -> None:
        name = name or item.text("name")
        if not name:
            raise item.wrong("name", "the name of what was called")
        call = {
            "id": _call_id(item),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        self._turn().setdefault("tool_calls", []).append(call)

    def _turn(self, new: bool = False) -> Message:
        """The assistant's message that is under way, or a new one. new: what comes begins a turn."""
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or (new and (last["content"] or "tool_calls" in last)):
            last = {"role": "assistant", "content": ""}
            self._messages.append(last)
        return last


def text_of(item: Fields, name: str) -> str:
    """A text, or that of an array of parts."""
    if not isinstance(item.any(name), list):
        return item.text(name) or ""
    texts = []
    for part in item.each(name):
        kind = part.text("type")
        if kind == "refusal":
            texts.append(part.text("refusal") or "")
        elif kind in TEXTS:
            texts.append(part.text("text") or "")
        else:
            raise ApiError(
                400, f"The model reads text alone, and {name} has a part of the type {kind!r:.40}.", param="input",
                code=UNSUPPORTED,
            )  # fmt: skip
    return "\n".join(texts)


def _call_id(item: Fields) -> str:
    found = item.text("call_id") or item.text("id")
    if not found:
        raise invalid("A call and its output need the same call_id.", "input")
    return found
