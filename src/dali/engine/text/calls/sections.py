"""DeepSeek's, Kimi's and Solar's: sections of special tokens, each call `BEGIN head SEPARATOR arguments END`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.json_call import json_arguments
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece

NAME = "<|tool_call:name|>"
FENCED, FENCED_END = "\n```json\n", "\n```"
FENCE = re.compile(r"\s*(?P<name>\S+)\s*```(?:json)?\s*")

Head = Callable[[Lark, str], str]  # the expression of what stands before the separator in a call of a tool


def form(section: str, begin: str, separator: str, end: str, section_end: str, head: Head) -> Form:
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

    def write(lark: Lark, functions: Sequence[Function], template: str) -> Written:
        around = (section, begin, end, section_end)
        if "```json" in template:
            call = lark.one_of(
                f"{lark.text(f'function{separator}{one.name}' + FENCED)} {one.json(lark)}"
                for one in functions
            )
            return Written(
                section, call, begin, f"{FENCED_END}{end}\n{begin}", FENCED_END + end + section_end, around
            )
        call = lark.one_of(
            f"{head(lark, one.name)} {lark.text(separator)} {one.json(lark)}" for one in functions
        )
        return Written(section, call, begin, end + begin, end + section_end, around)

    marks = (section, begin, separator, end, section_end, NAME)
    return Form(lambda template: begin in template, marks, read, write)


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
        lambda lark, name: lark.text(name),
    ),
    form(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
        lambda lark, name: f"{lark.text(f'functions.{name}:')} /[0-9]{{1,3}}/",
    ),
    form(
        "<|tool_calls|>",
        "<|tool_call:begin|>",
        "<|tool_call:args|>",
        "<|tool_call:end|>",
        "<|calls|>",
        lambda lark, name: f"/[A-Za-z0-9]{{1,16}}/ {lark.text(NAME + name)}",
    ),
]
