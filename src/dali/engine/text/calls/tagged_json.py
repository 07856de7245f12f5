"""JSON between tags, objects or an array of them: Hermes, Qwen2.5 and Qwen3, Granite, Phi-4-mini, Nemotron, Command R."""

from __future__ import annotations

from collections.abc import Iterator

from dali.engine.text.calls.form import Form
from dali.engine.text.calls.json_call import json_call
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece

TAGS = (
    ("<tool_calls>", "</tool_calls>"),
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<|function_call|>", "<|message_sep|>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
)


def form(opening: str, closing: str) -> Form:
    def read(source: Source) -> Iterator[Piece | None]:
        while True:
            yield from source.text(opening)
            if source.met is None:
                return
            yield from json_calls(source)
            yield from source.none()
            rest = yield from source.all_until(closing, opening)
            if source.met == opening:  # the closing tag is missing
                source.held = opening + source.held
            if rest.strip(" \r\n\t}"):  # a brace too many is a slip that models make
                yield Piece(rest)

    return Form(lambda template: opening in template, (opening, closing), read)


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


FORMS = [form(opening, closing) for opening, closing in TAGS]
