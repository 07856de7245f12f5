"""DeepSeek's, Kimi's and Solar's: sections of special tokens, each call `BEGIN head SEPARATOR arguments END`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dali.engine.text.calls.form import Form
from dali.engine.text.calls.json_call import json_arguments
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece

NAME = "<|tool_call:name|>"
FENCE = re.compile(r"\s*(?P<name>\S+)\s*```(?:json)?\s*")


def form(section: str, begin: str, separator: str, end: str, section_end: str) -> Form:
    def read(source: Source) -> Iterator[Piece | None]:
        while True:
            yield from source.text(section, begin, end, section_end)
            if source.met is None:
                return
            if source.met != begin:  # only frames the calls
                source.drop()
                continue
            head = (yield from source.all_until(separator, end)).strip()
            if source.met != separator:
                yield from source.none()
                continue
            name = _name(head)
            if head == "function":  # DeepSeek-V3 and R1: function SEPARATOR name ```json
                yield from source.skip()
                before = yield from source.all_until("{", end)
                found = FENCE.match(before)
                if source.met != "{" or not found:
                    yield from source.none()
                    continue
                source.held, name = "{" + source.held, found["name"]
            yield source.call(name)
            yield from json_arguments(source)
            yield from source.all_until(end)  # a fence's end

    return Form(lambda template: begin in template, (section, begin, separator, end, section_end, NAME), read)


def _name(head: str) -> str:
    """Kimi's heads are `functions.NAME:NUMBER`, Solar's `ID<|tool_call:name|>NAME`."""
    head = head.rpartition(NAME)[2]
    return re.sub(r":\d+$", "", head.removeprefix("functions."))


FORMS = [
    form(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    form(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
    form("<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:args|>", "<|tool_call:end|>", "<|calls|>"),
]
