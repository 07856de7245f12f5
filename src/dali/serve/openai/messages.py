"""The messages of a conversation, as clients send them, made ready for a chat template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dali.conversation import Message, plain_messages
from dali.errors import UsageError
from dali.serve.http.errors import UNSUPPORTED, ApiError, invalid
from dali.serve.http.fields import Fields

if TYPE_CHECKING:
    from dali.llm import LLM

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def messages_of(fields: Fields, llm: LLM) -> list[Message]:
    """ApiError: none, an unknown role, or content that is no text."""
    given = fields.list("messages")
    if not given:
        raise fields.wrong("messages", "an array of messages, at least one")
    for message in fields.each("messages"):
        if message.one_of("role", ROLES) is None:
            raise message.wrong("role", f"one of {', '.join(ROLES)}")
        _check_content(message)
        _check_calls(message)
    try:
        messages = plain_messages(given)
    except UsageError as error:
        raise invalid(f"{error.problem} {error.fix}", "messages") from error
    return known_roles(messages, llm)


def known_roles(messages: list[Message], llm: LLM) -> list[Message]:
    """Templates that know no developer take what he says from the system."""
    if re.search(r"\bdeveloper\b", str(llm.tokenizer.chat_template)):
        return messages
    return [
        message | {"role": "system"} if message["role"] == "developer" else message for message in messages
    ]


def _check_content(message: Fields) -> None:
    if isinstance(message.any("content"), list):
        for part in message.each("content"):
            kind = part.any("type")
            if kind in ("image_url", "input_audio", "file", "video_url", "image"):
                raise ApiError(
                    400, f"The model reads text alone, and a message has a part of the type {kind!r}.",
                    param="messages", code=UNSUPPORTED,
                )  # fmt: skip


def _check_calls(message: Fields) -> None:
    message.text("tool_call_id")
    message.refuse("function_call", "it was replaced by tool_calls.")
    for call in message.each("tool_calls"):
        call.text("id")
        call.one_of("type", ("function",))
        function = call.fields("function")
        if not function.text("name"):
            raise function.wrong("name", "the name of what was called")
        if not isinstance(function.any("arguments"), str | dict | None):
            raise function.wrong("arguments", "JSON as a string")
