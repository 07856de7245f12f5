"""Answers of a form that the tokenizer declares, as its `response_template`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dali.engine.text.piece import Piece

REASONING = ("reasoning_content", "thinking", "reasoning")  # what transformers calls it in a message


class Declared:
    """transformers' ResponseParser, its fields as text or reasoning; a structure.Structure. Calls of tools are text."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        """ValueError: the template is none."""
        special = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.markers: Mapping[int, str] = special
        begun = tokenizer.decode(prompt, skip_special_tokens=False)
        self._parser: Any = tokenizer.get_response_parser(prefix=begun)
        self._begun = False  # there was a piece: what comes next may begin with white space

    def push(self, text: str) -> list[Piece]:
        if self._parser is None:
            return [Piece(text)] if text else []
        try:
            return self._pieces(self._parser.feed(text))
        except Exception:  # a part that has ended and is not of the form: it and the rest still are an answer
            self._parser = None
            return self.push(text)

    def mark(self, marker: str) -> list[Piece]:
        return self.push("" if self._parser is None else marker)

    def flush(self) -> list[Piece]:
        if self._parser is None:
            return []
        try:
            return self._pieces(self._parser.finalize()[1])
        except Exception:  # as in push; or a field is missing
            return []

    def _pieces(self, events: list[dict[str, Any]]) -> list[Piece]:
        pieces = []
        for event in events:
            if event["type"] == "region_open":
                self._begun = False
            elif event["type"] == "region_chunk":
                text = event["text"] if self._begun else event["text"].lstrip()
                self._begun = self._begun or bool(text)
                if text:
                    pieces.append(Piece(reasoning=text) if event["field"] in REASONING else Piece(text))
        return pieces
