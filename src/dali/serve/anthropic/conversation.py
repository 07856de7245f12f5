"""`system` and `messages`, whose content is blocks, as a conversation for a chat template."""

from __future__ import annotations

import json
import re

from dali.conversation import Message
from dali.serve.http.errors import UNSUPPORTED, ApiError
from dali.serve.http.fields import Fields

ROLES = ("user", "assistant", "system")
WHOSE = {"tool_result": "user", "tool_use": "assistant", "thinking": "assistant"}
BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n*")


def messages_of(fields: Fields) -> list[Message]:
    """ApiError: none, an unknown role, or blocks that are no text."""
    if not fields.list("messages"):
        raise fields.wrong("messages", "an array of messages, at least one")
    reading = Conversation()
    system = without_billing(_texts(fields, "system"))
    if system:
        reading.system(system)
    for message in fields.each("messages"):
        role = message.one_of("role", ROLES)
        if role is None:
            raise message.wrong("role", f"one of {', '.join(ROLES)}")
        if role == "system":
            reading.system("\n".join(_texts(message, "content")))
        elif isinstance(message.any("content"), str):
            reading.text(role, message.text("content") or "")
        elif message.list("content") is None:
            raise message.wrong("content", "a string or an array of blocks")
        else:
            reading.turn(role)
            for block in message.each("content"):
                reading.block(role, block)
    return reading.messages


def without_billing(texts: list[str]) -> str:
    """What the system says, without the line that Claude Code puts before it for Anthropic's accounts: it changes with every
    request, is nothing to the model, and would leave no request a common beginning with the one before."""
    if texts:
        texts = [BILLING.sub("", texts[0], count=1) if BILLING.match(texts[0]) else texts[0], *texts[1:]]
    return "\n".join(text for text in texts if text)


class Conversation:
    """Adds blocks to `messages`. Messages of one role that follow each other are one, as Anthropic has it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def system(self, text: str) -> None:
        self.messages.append({"role": "system", "content": text})

    def text(self, role: str, text: str) -> None:
        message = self.turn(role)
        message["content"] = f"{message['content']}\n{text}" if message["content"] else text

    def turn(self, role: str) -> Message:
        """The message of `role` that is under way, or a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": ""})
        return self.messages[-1]

    def block(self, role: str, block: Fields) -> None:
        kind = block.text("type")
        if kind == "text":
            self.text(role, block.text("text") or "")
        elif kind == "tool_result" and role == "user":
            self._result(block)
        elif kind == "tool_use" and role == "assistant":
            self._use(block)
        elif kind == "thinking" and role == "assistant":
            turn, text = self.turn(role), block.text("thinking") or ""
            turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), text)))
        elif kind in WHOSE:
            raise block.wrong("type", f"in a message of the {WHOSE[kind]}")
        elif kind != "redacted_thinking":
            raise unread(kind)

    def _use(self, block: Fields) -> None:
        name, arguments = block.text("name"), block.mapping("input") or {}
        if not name:
            raise block.wrong("name", "the name of what was called")
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        call = {"id": _id(block, "id"), "type": "function", "function": function}
        self.turn("assistant").setdefault("tool_calls", []).append(call)

    def _result(self, block: Fields) -> None:
        texts = _texts(block, "content")
        if not any(texts) and block.flag("is_error"):
            texts = ["The tool failed."]
        if self.messages[-1] == {"role": "user", "content": ""}:  # results stand before what the user says
            del self.messages[-1]
        result = {"role": "tool", "content": "\n".join(texts), "tool_call_id": _id(block, "tool_use_id")}
        self.messages.append(result)


def unread(kind: str | None) -> ApiError:
    return ApiError(
        400, f"The model reads text alone, and there is a block of the type {str(kind)[:40]!r}.", param="messages",
        code=UNSUPPORTED,
    )  # fmt: skip


def _texts(fields: Fields, name: str) -> list[str]:
    """A string, or those of an array of blocks of text."""
    if not isinstance(fields.any(name), list):
        return [fields.text(name) or ""]
    texts = []
    for block in fields.each(name):
        if block.text("type") != "text":
            raise unread(block.text("type"))
        texts.append(block.text("text") or "")
    return texts


def _id(block: Fields, name: str) -> str:
    found = block.text(name)
    if not found:
        raise block.wrong(name, "a string, the same for a call and its result")
    return found
