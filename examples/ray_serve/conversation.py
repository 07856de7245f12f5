"""Which conversation a request belongs to, so that all of its turns meet the replica that has read its beginning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

HEADER = "x-session-id"
OPENING = 256  # letters of a text to be continued by which it is known


def conversation_of(headers: Mapping[str, str], body: bytes) -> str | None:
    """A key that all turns of a conversation share; None where a request belongs to none.

    The client's own word first: the header, `prompt_cache_key` (Codex), `metadata.user_id` (Claude Code's names the session).
    Else the beginning that no later turn changes: the first message of the user.
    """
    if session := headers.get(HEADER):
        return session
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the replica says what is wrong with it
    if not isinstance(asked, dict):
        return None
    metadata = asked.get("metadata")
    named = (asked.get("prompt_cache_key"), metadata.get("user_id") if isinstance(metadata, dict) else None)
    found = next((name for name in named if name), None) or _opening(asked)
    return None if found is None else hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _opening(asked: dict[str, Any]) -> Any:
    for field in ("messages", "input"):
        if isinstance(messages := asked.get(field), list):
            said = (message for message in messages if isinstance(message, dict))
            return next((message.get("content") for message in said if message.get("role") == "user"), None)
    text = asked.get("prompt") or asked.get("input")
    return text[:OPENING] if isinstance(text, str | list) else None
