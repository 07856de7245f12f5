"""JSON between tags, objects or an array of them: Hermes, Qwen2.5 and Qwen3, Granite, Phi-4-mini, Nemotron, Command R."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.json_call import json_call, write_json_call
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece


@dataclass(frozen=True)
class Tags:
    """The tags, and what models write within them: `first call between call ... last`, each call with these keys after `head`.
    Without `last` each call has tags of its own."""

    opening: str
    closing: str
    first: str = "\n"
    between: str = ""
    last: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    head: str = "{"

    def form(self) -> Form:
        marks = (self.opening, self.closing)
        return Form(lambda template: self.opening in template, marks, self.read, self.write)

    def read(self, source: Source) -> Iterator[Piece | None]:
        while True:
            yield from source.text(self.opening)
            if source.met is None:
                return
            yield from json_calls(source)
            yield from source.none()
            rest = yield from source.all_until(self.closing, self.opening)
            if source.met == self.opening:  # the closing tag is missing
                source.held = self.opening + source.held
            if rest.strip(" \r\n\t}"):  # a brace too many is a slip that models make
                yield Piece(rest)

    def write(self, lark: Lark, functions: Sequence[Function], template: str) -> Written:
        call = write_json_call(lark, functions, self.keys, self.head)
        if not self.last:
            white = self.first
            between = f"{white}{self.closing}{white}{self.opening}{white}"
            return Written(self.opening, call, white, between, white + self.closing, (self.opening,))
        end = self.last + (self.closing if self.closing in template else "")  # Granite's has none
        return Written(self.opening, call, self.first, self.between, end, (self.opening,))


def json_calls(source: Source) -> Iterator[Piece | None]:
    """One call after the other, or an array of them."""
    if not (yield from source.take("[")):
        while (yield from json_call(source)):
            yield from source.skip()
            if not source.held.startswith("{"):
                break
        return
    while (yield from json_call(source)) and (yield from source.take(",")):
        pass
    yield from source.take("]")


TAGS = (
    Tags("<tool_calls>", "</tool_calls>", between="\n", last="\n"),
    Tags("<tool_call>", "</tool_call>"),
    Tags("<|tool_call|>", "<|/tool_call|>", "[", ", ", "]"),
    Tags("<TOOLCALL>", "</TOOLCALL>", "[", ", ", "]"),
    Tags("<|function_call|>", "<|message_sep|>", ""),
    Tags(
        "<|START_ACTION|>", "<|END_ACTION|>", "[\n    ", ",\n    ", "\n]", ("tool_name", "parameters"), '{"tool_call_id": "0", '
    ),
)  # fmt: skip
FORMS = [tags.form() for tags in TAGS]
