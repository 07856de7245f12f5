"""A tag for the function and one for each parameter: Qwen3-Coder and Qwen3.5, Nemotron, Seed, MiniMax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dali.engine.text.calls.form import Form
from dali.engine.text.calls.source import Source
from dali.engine.text.calls.values import Values
from dali.engine.text.piece import Piece


@dataclass(frozen=True)
class Xml:
    """The tags. The name of a function, and of a parameter, stands between what opens its tag and `named`."""

    opening: str
    closing: str
    function: str
    function_end: str
    parameter: str
    parameter_end: str
    named: str

    def form(self) -> Form:
        marks = (self.opening, self.closing)
        return Form(lambda template: self.opening in template and self.function in template, marks, self.read)

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
            name = yield from source.all_until(self.named)
            if source.met is None or not name.strip():
                yield from source.none()
                continue
            yield source.call(name.strip())
            yield from self._arguments(source, Values(source, name.strip()))

    def _arguments(self, source: Source, values: Values) -> Iterator[Piece | None]:
        while (yield from source.take(self.parameter)):
            name = yield from source.all_until(self.named)
            if source.met is not None:
                yield from values.argument(name.strip(), (self.parameter_end,), padded=True)
            if source.met is None:
                return
        if (yield from source.take(self.function_end)) or not source.over:
            yield values.end()


TAGS = [
    Xml("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>", ">"),
    Xml("<seed:tool_call>", "</seed:tool_call>", "<function=", "</function>", "<parameter=", "</parameter>", ">"),
    Xml(
        "<minimax:tool_call>", "</minimax:tool_call>",
        '<invoke name="', "</invoke>", '<parameter name="', "</parameter>", '">',
    ),
]  # fmt: skip
FORMS = [tags.form() for tags in TAGS]
