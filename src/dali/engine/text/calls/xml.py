"""A tag for the function and one for each parameter: Qwen3-Coder and Qwen3.5, Nemotron, Seed, MiniMax, DeepSeek-V3.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.source import Source
from dali.engine.text.calls.tag_arguments import arguments_of, is_text, value
from dali.engine.text.calls.values import Values
from dali.engine.text.piece import Piece


@dataclass(frozen=True)
class Xml:
    """The tags. A name stands after what opens the tag of a function or parameter, up to a quotation mark or the tag's end."""

    opening: str
    closing: str
    function: str
    function_end: str
    parameter: str
    parameter_end: str
    token: str = ""
    """A part of all the tags; templates spell them by it."""
    padded: bool = False
    """Whether models write each value on lines of its own,"""
    grouped: bool = False
    """and several functions between one pair of tags."""

    def form(self) -> Form:
        told = (
            (self.token, self.opening.partition(self.token)[2])
            if self.token
            else (self.opening, self.function)
        )
        marks = (self.opening, self.closing, *filter(None, [self.token]))
        return Form(lambda template: all(text in template for text in told), marks, self.read, self.write)

    def read(self, source: Source) -> Iterator[Piece | None]:
        while True:
            yield from source.text(self.opening, self.function, self.closing)  # models leave out the first
            if source.met is None:
                return
            if source.met == self.closing:
                source.drop()
                continue
            if source.met == self.opening and not (yield from source.take(self.function)):
                yield from source.none()
                continue
            name, _ = _head((yield from source.all_until(">")))
            if source.met is None or not name:
                yield from source.none()
                continue
            yield source.call(name)
            yield from self._arguments(source, Values(source, name))

    def write(self, lark: Lark, functions: Sequence[Function], template: str) -> Written:
        end = '">' if self.function.endswith('"') else ">"
        calls = []
        for function in functions:
            call = lark.text(f"{self.function}{function.name}{end}\n")
            for one in arguments_of(function):
                kind = f'" string="{str(is_text(one.schema)).lower()}">' if self.token else end
                said = value(lark, function, one, self.parameter_end, self.padded)
                tags = f'{lark.text(f"{self.parameter}{one.name}{kind}")} {said} "\\n"'
                call += f" {tags}" if one.required else f" ({tags})?"
            calls.append(lark.rule(f"{call} {lark.text(self.function_end)}"))
        between = "\n" if self.grouped else f"\n{self.closing}\n{self.opening}\n"
        around = (self.opening, self.function, self.closing)
        return Written(self.opening, lark.one_of(calls), "\n", between, f"\n{self.closing}", around)

    def _arguments(self, source: Source, values: Values) -> Iterator[Piece | None]:
        while (yield from source.take(self.parameter)):
            name, attributes = _head((yield from source.all_until(">")))
            if source.met is not None:
                text = 'string="true"' in attributes
                yield from values.argument(name, (self.parameter_end,), padded=True, text=text)
            if source.met is None:
                return
        if (yield from source.take(self.function_end)) or not source.over:
            yield values.end()


def _head(tag: str) -> tuple[str, str]:
    """(name, attributes)"""
    name, _, attributes = tag.partition('"')
    return name.strip(), attributes


TAGS = [
    Xml("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>", padded=True),
    Xml("<seed:tool_call>", "</seed:tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"),
    Xml(
        "<minimax:tool_call>", "</minimax:tool_call>",
        '<invoke name="', "</invoke>", '<parameter name="', "</parameter>", grouped=True,
    ),
    *(
        Xml(
            f"<｜DSML｜{calls}>", f"</｜DSML｜{calls}>",
            '<｜DSML｜invoke name="', "</｜DSML｜invoke>", '<｜DSML｜parameter name="', "</｜DSML｜parameter>", "｜DSML｜",
            grouped=True,
        )
        for calls in ("function_calls", "tool_calls")
    ),
]  # fmt: skip
FORMS = [tags.form() for tags in TAGS]
