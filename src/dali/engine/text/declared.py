"""Answers of a form that the tokenizer declares, as its `response_template`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.parsed import call_of
from dali.engine.text.piece import Call, Piece
from dali.errors import UsageError

CALLS = "tool_calls"
REASONING = ("reasoning_content", "thinking", "reasoning")  # what transformers calls it in a message


class Declared:
    """transformers' ResponseParser, its fields as text or reasoning; a structure.Structure.

    Where calls of tools are told apart, each comes whole, when it is complete; elsewhere they are text.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: list[int],
        tools: Sequence[Mapping[str, Any]] | None = None,
        most: int | None = None,
    ) -> None:
        """tools: those whose calls are told apart, None for none; most: calls after which the answer ends. ValueError: the
        template is none."""
        special = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.markers: Mapping[int, str] = special
        begun = tokenizer.decode(prompt, skip_special_tokens=False)
        begin = tokenizer.get_response_parser
        typed = (
            tools is not None and "tools" in inspect.signature(begin).parameters
        )  # not in transformers' older versions
        self._parser: Any = begin(prefix=begun, tools=[*tools]) if tools and typed else begin(prefix=begun)
        self._tells_calls = tools is not None
        self._most: float = math.inf if most is None else most
        self._calls = 0
        self._call = ""  # what was read of one that is not complete
        self.over = False
        self._begun = False  # there was a piece: what comes next may begin with white space

    def push(self, text: str) -> list[Piece]:
        if self._parser is None:
            return [Piece(text)] if text else []
        try:
            return self._pieces(self._parser.feed(text))
        except Exception:  # a part that has ended and is not of the form: it and the rest still are an answer
            self._parser, said, self._call = None, self._call, ""
            return self.push(said + text)

    def mark(self, marker: str) -> list[Piece]:
        return self.push("" if self._parser is None else marker)

    def flush(self) -> list[Piece]:
        if self._parser is None:
            return []
        try:
            return self._pieces(self._parser.finalize()[1])
        except Exception:  # as in push; or a field is missing
            return [Piece(self._call)] if self._call else []

    def lead(self, lark: Lark) -> str:
        raise UsageError(
            "The tokenizer of this model declares the form of its answers, and such answers cannot be held to a schema.",
            "Ask for one without a schema, a grammar or a call that has to be made.",
        )

    def _pieces(self, events: list[dict[str, Any]]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            kind, of_call = event["type"], self._tells_calls and event["field"] == CALLS
            if kind == "region_open":
                self._begun, self._call = False, ""
            elif kind == "region_chunk" and of_call:
                self._call += event["text"]
            elif kind == "region_chunk":
                text = event["text"] if self._begun else event["text"].lstrip()
                self._begun = self._begun or bool(text)
                if text:
                    pieces.append(Piece(reasoning=text) if event["field"] in REASONING else Piece(text))
            elif kind == "region_close" and of_call:
                pieces += self._closed(event["value"])
        return pieces

    def _closed(self, value: Any) -> list[Piece]:
        """The calls of a region, or what was said in it where those are none."""
        said, self._call = self._call, ""
        values = value if isinstance(value, list) else [value]
        calls = [call for one in values if (call := call_of(one))]
        if not calls:
            return [Piece(said)] if said else []
        calls = calls if math.isinf(self._most) else calls[: int(self._most) - self._calls]
        pieces = [Piece(call=Call(self._calls + at, *call)) for at, call in enumerate(calls)]
        self._calls += len(calls)
        self.over = self._calls >= self._most
        return pieces
