"""A message as it grows: its blocks, and the events that tell of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

from dali.serve.generation.events import Finish, Part, Reasoning, ToolCall, Usage

Event = dict[str, Any]

SIGNATURE = "dali"  # of thinking: clients send none back that has none
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
TEXTS = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta")}


class Output:
    """Blocks out of an answer's parts, in their order: thinking, text, uses of tools. A block ends where another begins."""

    def __init__(self, model: str, prompt: int) -> None:
        """prompt: its tokens."""
        self._blocks: list[dict[str, Any]] = []
        self._said: list[str] = []  # of the last block
        self._growing = False  # whether the last block is
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(Usage(prompt)),
        }

    def begin(self) -> list[Event]:
        return [{"type": "message_start", "message": self.message}]

    def take(self, parts: Iterable[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, ToolCall):
                if part.name:
                    events += self._open({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
                events += self._say(
                    {"type": "input_json_delta", "partial_json": part.arguments}, part.arguments
                )
                continue
            kind = "thinking" if isinstance(part, Reasoning) else "text"
            name, delta = TEXTS[kind]
            if not (self._growing and self._blocks[-1]["type"] == kind):
                signed = {"signature": ""} if kind == "thinking" else {}
                events += self._open({"type": kind, name: "", **signed})
            events += self._say({"type": delta, name: part.text}, part.text)
        return events

    def finish(self, finish: Finish) -> list[Event]:
        """The end of an answer that did not fail."""
        events = self._close(finish.reason != "length")
        reason = (
            "stop_sequence" if finish.reason == "stop" and finish.stop is not None else REASONS[finish.reason]
        )
        ended = {"stop_reason": reason, "stop_sequence": finish.stop}
        usage = usage_of(finish.usage)
        self.message |= ended | {"usage": usage}
        return [*events, {"type": "message_delta", "delta": ended, "usage": usage}, {"type": "message_stop"}]

    def _open(self, block: dict[str, Any]) -> list[Event]:
        events = self._close(True)
        self._blocks.append(block)
        self._said, self._growing = [], True
        start = {"type": "content_block_start", "index": self._index, "content_block": dict(block)}
        return [*events, start]

    def _say(self, delta: dict[str, Any], text: str) -> list[Event]:
        self._said.append(text)
        return [self._delta(delta)] if text else []

    def _close(self, whole: bool) -> list[Event]:
        """whole: nothing cut the block off."""
        if not self._growing:
            return []
        self._growing = False
        block, said = self._blocks[-1], "".join(self._said)
        stop: Event = {"type": "content_block_stop", "index": self._index}
        if block["type"] == "tool_use":
            found = _object(said)
            if found is None and not whole:
                self._blocks.pop()  # half of the arguments are none
            block["input"] = found or {}
            return [stop]
        block[TEXTS[block["type"]][0]] = said
        if block["type"] == "text":
            return [stop]
        block["signature"] = SIGNATURE
        return [self._delta({"type": "signature_delta", "signature": SIGNATURE}), stop]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _index(self) -> int:
        return len(self._blocks) - 1


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.answer,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
