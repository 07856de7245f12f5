"""Answers that begin with their reasoning between two tags, as in `<think>So ...</think>The answer.`"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dali.engine.constraint.lark import ANY, WHITE, Lark
from dali.engine.text.piece import Piece
from dali.engine.text.stop import overlap

TAGS = (  # those of Qwen, DeepSeek, GLM and most others; Seed, Kimi, Mistral, Cohere, Gemma
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)

BEFORE, REASONING, TEXT = range(3)


class Thinking:
    """Reasoning up to the closing tag, text after it; a structure.Structure.

    The opening tag counts only where the answer begins, so that an answer may speak of it. White space around the tags belongs to
    neither side. What may yet become a tag, and white space at the end of reasoning, is held back.
    """

    over = False

    def __init__(
        self,
        tags: tuple[str, str],
        markers: Mapping[int, str],
        opened: bool = False,
        control: Collection[str] = (),
        closed: bool = False,
    ) -> None:
        """opened: the prompt has opened the reasoning. control: the markers that are no text where they divide nothing. closed:
        the prompt has closed the reasoning, so that a model begins none."""
        self.markers = markers
        self._control = control
        self._opening, self._closing = tags
        self._opened = opened
        self._closed = closed
        self._place = BEFORE
        self._begun = False  # reasoning or text has begun: its leading white space is gone
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces = []
        if self._place == BEFORE:
            self._begin()
        if self._place == REASONING and (reasoning := self._reason()):
            pieces.append(Piece(reasoning=reasoning))
        if self._place == TEXT and (text := self._let_out(self._held)):
            self._held = ""
            pieces.append(Piece(text))
        return pieces

    def mark(self, marker: str) -> list[Piece]:
        return [] if self._place == TEXT and marker in self._control else self.push(marker)

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._place == REASONING or (self._place == BEFORE and self._opened):
            held = self._let_out(held).rstrip()
            return [Piece(reasoning=held)] if held else []
        return [Piece(held)] if held and self._place == BEFORE else []

    def lead(self, lark: Lark) -> str:
        reasoning = f"{lark.until_any(ANY, self._closing)} {WHITE}"
        if self._opened:
            return reasoning
        return "" if self._closed else f"({lark.text(self._opening)} {reasoning})?"

    def resume(self, said: str) -> None:
        """Go on after `said`, with which the prompt begins the answer."""
        self.push(said)
        self._held = ""
        self._begun = True

    def _begin(self) -> None:
        said = self._held.lstrip()
        if said.startswith(self._opening):
            self._place, self._held = REASONING, said.removeprefix(self._opening)
        elif not self._opening.startswith(said):
            self._place = REASONING if self._opened else TEXT
            self._begun = not self._opened  # an answer without reasoning is left as it is

    def _reason(self) -> str:
        """The reasoning that is now final; at its end the text begins."""
        reasoning, closing, after = self._held.partition(self._closing)
        if closing:
            out = self._let_out(reasoning).rstrip()
            self._place, self._begun, self._held = TEXT, False, after
            return out
        end = len(reasoning) - overlap(reasoning, self._closing)
        end = len(reasoning[:end].rstrip())
        self._held = reasoning[end:]
        return self._let_out(reasoning[:end])

    def _let_out(self, text: str) -> str:
        """`text` without the white space that reasoning or text began with."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
