"""Llama 3's: an answer that is a JSON object with the name of a tool and its parameters, or several with `;` between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dali.engine.constraint.lark import Lark
from dali.engine.text.calls.form import Form, Function, Written
from dali.engine.text.calls.json_call import json_call, write_json_call
from dali.engine.text.calls.source import Source
from dali.engine.text.piece import Piece

TAG = "<|python_tag|>"


def read(source: Source) -> Iterator[Piece | None]:
    yield from source.take(TAG)
    while True:
        yield from source.skip()
        while source.held.startswith("{"):
            source.begin()
            if not (yield from json_call(source, source.names)):
                yield from source.none()
                break
            if not (yield from source.take(";")):
                break
            yield from source.skip()
        yield from source.text(TAG)
        if source.met is None:
            return


def write(lark: Lark, functions: Sequence[Function], template: str) -> Written:
    call = write_json_call(lark, functions, ("name", "parameters"))
    return Written("", call, between="; ", reads=(TAG,))


FORMS = [Form(lambda template: '{"name": function name' in template, (TAG,), read, write)]
