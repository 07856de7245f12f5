"""Answers of several messages in channels, as gpt-oss gives them (https://github.com/openai/harmony)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from dali.engine.constraint.lark import ANY, Lark
from dali.engine.text.calls.form import Function
from dali.engine.text.piece import Call, Piece
from dali.errors import UsageError

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
FUNCTIONS = "to=functions."
MARKERS = (START, CHANNEL, MESSAGE, *ENDS, "<|constrain|>")


class Harmony:
    """`<|start|>ROLE<|channel|>CHANNEL<|message|>CONTENT<|end|>`, again and again; a structure.Structure.

    The channel `analysis` is reasoning, all others are text, with an empty line between two messages. A message to a tool begins
    with its address, `to=functions.NAME`, or is a call where calls are told apart. Markers count only as tokens: an answer may
    spell them in letters.
    """

    def __init__(self, markers: Mapping[int, str]) -> None:
        self.markers = markers
        self._header: str | None = ""  # of the message that is to come; None within a message
        self._prompted = 0  # how much of the header the prompt has
        self._reasons = False
        self._given = [False, False]  # whether there was text, and reasoning
        self._lead = ""  # what the message's first piece has before it
        self._most: float = 0  # calls that are told apart; of more of them, nothing is said
        self._calls = 0
        self._within_call = False
        self.over = False

    def tell_calls(self, most: int | None) -> None:
        """Messages to `functions.NAME` are calls from here on; None for any number, after which the answer ends."""
        self._most = math.inf if most is None else most

    def resume(self, prompt: Iterable[str]) -> None:
        """Go on after `prompt`: the markers and the text of the message that it leaves open."""
        for part in prompt:
            self.mark(part) if part in MARKERS else self.push(part)
        self._given, self._lead = [False, False], ""  # what the prompt says is no part of the answer
        self._prompted = len(self._header or "")

    def push(self, text: str) -> list[Piece]:
        if self._header is not None:
            self._header += text
            return []
        return self._piece(text)

    def mark(self, marker: str) -> list[Piece]:
        if marker == MESSAGE:
            return self._open(self._header or "")
        if marker in ENDS or marker == START:
            self._header, self._prompted = "", 0
            self._within_call, self.over = False, self.over or 0 < self._most <= self._calls
        else:
            self._header = (self._header or "") + f" {marker} "
        return []

    def flush(self) -> list[Piece]:
        """Words without any marker are what a model has said that leaves its format; a header that was cut off is none of it."""
        words, self._header = (self._header or "")[self._prompted :], None
        self._within_call = False
        self._reasons = False
        return [] if any(self._given) or self._calls or CHANNEL in words else self._piece(words)

    def lead(self, lark: Lark) -> str:
        """Reasoning, message by message. The channel of what comes then is `final`'s or `write_call`'s to open."""
        if (self._header or "").strip() != "assistant":
            raise UsageError(
                "The prompt has begun the answer's message, so its channel cannot be held to a schema.",
                "Let the chat template end with the assistant's turn.",
            )
        return f"({self._message(lark, 'analysis')})*"

    def commentary(self, lark: Lark) -> str:
        """Messages to whoever asked, before the last one."""
        return self._message(lark, "commentary")

    def final(self, lark: Lark) -> str:
        """What opens the last message."""
        constrained = (
            f"(/ ?/ {lark.text('<|constrain|>')} /[a-z]{{1,8}}/)?" if self._has("<|constrain|>") else ""
        )
        return f"{lark.text(f'{CHANNEL}final')} {constrained} {lark.text(MESSAGE)}"

    def write_call(self, lark: Lark, functions: Sequence[Function]) -> str:
        """One call, which ends the answer."""
        constrained = " <|constrain|>json" if self._has("<|constrain|>") else " json"
        return lark.one_of(
            f"{lark.text(f'{CHANNEL}commentary {FUNCTIONS}{one.name}{constrained}{MESSAGE}')} {one.json(lark)}"
            for one in functions
        )

    def _message(self, lark: Lark, channel: str) -> str:
        begin, end = f"{CHANNEL}{channel}{MESSAGE}", f"<|end|>{START}assistant"
        return f"{lark.text(begin)} {lark.terminal(ANY)} {lark.text(end)}"

    def _has(self, marker: str) -> bool:
        return marker in self.markers.values()

    def _open(self, header: str) -> list[Piece]:
        channel = re.search(rf"{re.escape(CHANNEL)}\s*(\w+)", header)
        address = re.search(r"to=\S+", header)
        self._reasons = channel is not None and channel[1] == "analysis" and address is None
        self._lead = "\n\n" if self._given[self._reasons] else ""
        self._header = None
        if address and address[0].startswith(FUNCTIONS) and self._calls < self._most:
            self._calls, self._within_call = self._calls + 1, True
            return [Piece(call=Call(self._calls - 1, address[0].removeprefix(FUNCTIONS)))]
        if address:
            self._lead += f"{address[0]} "
        return []

    def _piece(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._within_call:
            return [Piece(call=Call(self._calls - 1, "", text))]
        text, self._lead = self._lead + text, ""
        self._given[self._reasons] = True
        return [Piece(reasoning=text) if self._reasons else Piece(text)]
