"""GLM's: `<tool_call>name`, and a tag for each argument's key and value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.source import Source
from dali.engine.text.calls.tag_arguments import arguments_of, value
from dali.engine.text.calls.values import Values
from dali.engine.text.piece import Piece

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"


def read(source: Source) -> Iterator[Piece | None]:
    while True:
        yield from source.text(OPEN)
        if source.met is None:
            return
        yield from source.skip()
        name = (yield from source.all_until("\n", KEY, CLOSE)).strip()
        if source.met is None or not name:
            yield from source.none()
            continue
        met = source.met
        yield source.call(name)
        yield from _arguments(source, Values(source, name), met)


def _arguments(source: Source, values: Values, met: str) -> Iterator[Piece | None]:
    """met: what the name ended with."""
    while met == KEY or (met != CLOSE and (yield from source.take(KEY))):
        met = ""
        key = yield from source.all_until(KEY_END)
        if not (yield from source.take(VALUE)):
            break
        yield from values.argument(key.strip(), (VALUE_END,), padded=False)
        if source.met is None:
            return
    if met == CLOSE or (yield from source.take(CLOSE)) or not source.over:
        yield values.end()


def write(lark: Lark, functions: Sequence[Function], template: str) -> Written:
    white = "/\\n?/"  # between tags; some of its models write line breaks there
    calls = []
    for function in functions:
        call = f"{lark.text(function.name)} {white}"
        for one in arguments_of(function):
            said = value(lark, function, one, VALUE_END, padded=False)
            pair = f"{lark.text(f'{KEY}{one.name}{KEY_END}')} {white} {lark.text(VALUE)} {said} {white}"
            call += f" {pair}" if one.required else f" ({pair})?"
        calls.append(lark.rule(call))
    return Written(OPEN, lark.one_of(calls), "", f"{CLOSE}\n{OPEN}", CLOSE, (OPEN,))


FORMS = [Form(lambda template: KEY in template, (OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END), read, write)]
