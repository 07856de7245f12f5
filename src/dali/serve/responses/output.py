"""A response as it grows: its items, and the events that tell of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dali.serve.generation.events import Finish, Part, Reasoning, ToolCall, Usage
from dali.serve.http.errors import ApiError

Event = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """What events call the text of an item that has its text in a part."""

    parts: str
    part_event: str
    text_event: str
    index: str
    part: dict[str, Any]
    more: dict[str, Any]


KINDS = {
    "reasoning": Texts(
        "summary",
        "reasoning_summary_part",
        "reasoning_summary_text",
        "summary_index",
        {"type": "summary_text"},
        {},
    ),
    "message": Texts(
        "content",
        "content_part",
        "output_text",
        "content_index",
        {"type": "output_text", "annotations": [], "logprobs": []},
        {"logprobs": []},
    ),
}
PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class Output:
    """Items out of an answer's parts, in the order they come: reasoning, text, calls. An item ends where another begins."""

    def __init__(self, model: str, echo: dict[str, Any]) -> None:
        """echo: what the response repeats of its request."""
        self._items: list[dict[str, Any]] = []
        self._said: list[str] = []  # of the last item
        self._growing = False  # whether the last item is
        self._events = 0
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
            **echo,
            "usage": None,
        }

    @property
    def response(self) -> dict[str, Any]:
        return self._response | {"output": list(self._items)}

    def begin(self) -> list[Event]:
        return [self._event("created", response=self.response), self.still()]

    def still(self) -> Event:
        """That it is under way, for clients that wait."""
        return self._event("in_progress", response=self.response)

    def take(self, parts: Iterable[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, ToolCall):
                if part.name:
                    events += self._open("function_call", call_id=part.id, name=part.name, arguments="")
                events += self._say("function_call_arguments", part.arguments)
            else:
                kind = "reasoning" if isinstance(part, Reasoning) else "message"
                if not (self._growing and self._items[-1]["type"] == kind):
                    events += self._open(kind, **({"role": "assistant"} if kind == "message" else {}))
                texts = KINDS[kind]
                events += self._say(texts.text_event, part.text, **{texts.index: 0}, **texts.more)
        return events

    def finish(self, finish: Finish) -> list[Event]:
        """The end of an answer that did not fail."""
        status = "incomplete" if finish.reason == "length" else "completed"
        events = (
            [] if self._items else self._open("message", role="assistant")
        )  # so that there is one, if an empty one
        events += self._close(status)
        self._response["status"] = status
        self._response["usage"] = usage_of(finish.usage)
        if finish.reason == "length":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._event(status, response=self.response)]

    def fail(self, error: ApiError) -> list[Event]:
        self._response["status"] = "failed"
        self._response["error"] = {"code": error.code or "server_error", "message": error.message}
        return [self._event("failed", response=self.response)]

    def _open(self, kind: str, **fields: Any) -> list[Event]:
        events = self._close("completed")
        item = {
            "id": f"{PREFIXES[kind]}_{secrets.token_hex(16)}",
            "type": kind,
            "status": "in_progress",
            **fields,
        }
        texts = KINDS.get(kind)
        if texts is not None:
            item[texts.parts] = []
        self._items.append(item)
        self._said, self._growing = [], True
        events.append(self._event("output_item.added", output_index=len(self._items) - 1, item=dict(item)))
        if texts is not None:
            events.append(
                self._of_item(f"{texts.part_event}.added", part=texts.part | {"text": ""}, **{texts.index: 0})
            )
        return events

    def _say(self, event: str, text: str, **more: Any) -> list[Event]:
        self._said.append(text)
        return [self._of_item(f"{event}.delta", delta=text, **more)] if text else []

    def _close(self, status: str) -> list[Event]:
        if not self._growing:
            return []
        self._growing = False
        item, said = self._items[-1], "".join(self._said)
        texts, events = KINDS.get(item["type"]), []
        if texts is None:
            item["arguments"] = said
            events.append(self._of_item("function_call_arguments.done", arguments=said))
        else:
            part, at = texts.part | {"text": said}, {texts.index: 0}
            item[texts.parts] = [part]
            events.append(self._of_item(f"{texts.text_event}.done", text=said, **at, **texts.more))
            events.append(self._of_item(f"{texts.part_event}.done", part=part, **at))
        item["status"] = status
        return [*events, self._event("output_item.done", output_index=len(self._items) - 1, item=dict(item))]

    def _of_item(self, name: str, **fields: Any) -> Event:
        return self._event(name, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _event(self, name: str, **fields: Any) -> Event:
        self._events += 1
        return {"type": f"response.{name}", "sequence_number": self._events - 1, **fields}


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.answer,
    }
