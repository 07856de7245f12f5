"""A conversation as a chat template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from dali.errors import UsageError

Message = dict[str, Any]


def plain_messages(messages: object) -> list[Message]:
    """The messages with text as their content: parts of text, as OpenAI's clients send them, are joined by newlines, as servers
    elsewhere do. UsageError for what is no message, and for parts that are no text, which a template would print as Python.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise _no_conversation()
    return [_plain(message) for message in messages]


def _plain(message: Any) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise _no_conversation()
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": encodable(content)}
    if content is None and message["role"] == "assistant":
        return message if message.get("tool_calls") else message | {"content": ""}  # none: it said nothing
    if isinstance(content, Sequence):
        return message | {"content": encodable("\n".join(_text_of(part) for part in content))}
    raise UsageError(
        f"A message of the {message['role']} has the content {shorten(repr(content), 60)}.",
        "Give text, or a list of text parts.",
    )


def encodable(text: str) -> str:
    """`text` itself. UsageError where it cannot be written as UTF-8: it was decoded from bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text {shorten(ascii(text), 60)} is not UTF-8.", "Check the encoding of where it comes from."
        ) from error
    return text


def _text_of(part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise UsageError(
        f"A message has a content part of the type {shorten(repr(kind), 60)}, which dali cannot read.",
        'Give text alone: {"type": "text", "text": "Hello"}.',
    )


def _no_conversation() -> UsageError:
    return UsageError(
        "A conversation is a list of messages, at least one, each with its role.",
        'Write [{"role": "user", "content": "Hello"}].',
    )
