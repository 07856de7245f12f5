"""The grammar of arguments that are written between tags: strings as they are, anything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dali.engine.constraint.lark import ANY, Lark, Schema, without
from dali.engine.text.calls.form import Function
from dali.engine.text.calls.source import properties_of, resolved
from dali.engine.text.calls.values import BREAK, types_of
from dali.errors import UsageError

DEFINITIONS = ("$defs", "definitions")
SAYING_NOTHING = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id",
    *DEFINITIONS,
}  # fmt: skip
OF_ARGUMENTS = {"type", "properties", "required", "additionalProperties", "strict"}
OF_STRINGS = {"type", "enum", "const", "minLength", "maxLength"}
NO_STRING = ["object", "array", "number", "boolean", "null"]


@dataclass(frozen=True)
class Argument:
    name: str
    schema: Schema
    required: bool


def arguments_of(function: Function) -> Iterator[Argument]:
    """The arguments of a tool, in the order in which they are written. UsageError: what cannot be written so."""
    whole = resolved(function.parameters, function.parameters)
    named = whole.get("required")
    required = [str(name) for name in named] if isinstance(named, list) else []
    properties = properties_of(function.parameters)
    if function.strict:
        _refuse_others(function, whole, OF_ARGUMENTS)
        if missing := set(required).difference(properties):
            raise _refused(function, f"requires {min(missing)!r}, of which it says nothing")
    for name, schema in properties.items():
        if not name or name != name.strip() or any(sign in name for sign in '<>"\n'):
            raise _refused(function, f"has an argument {name[:40]!r}, which has signs of tags in its name")
        yield Argument(name, schema, name in required)


def is_text(schema: Schema) -> bool:
    """Whether an argument is a string and nothing else, which is written without quotation marks."""
    return types_of(schema) == {"string"}


def value(lark: Lark, function: Function, argument: Argument, closing: str, padded: bool) -> str:
    """The expression of a value up to its tag `closing`, and that. padded: with a line break around it; where not, text has none
    there, as who reads it may take that for padding."""
    schema, around = argument.schema, BREAK if padded else ""
    types = types_of(schema)
    if types == {"string"} or (("string" in types or not types) and not function.strict):
        text = _text(function, schema) if types == {"string"} else ANY
        free = f"({text}) & {without([closing])}"
        if not padded:
            free = f"{free} & ~/\\n(?s:.*)/ & ~/(?s:.*)\\n/"
        body = lark.until(free, around + closing)
        return f"{lark.text(around)} {body}" if around else body
    if not types:  # what reads it takes a string for text, with its quotation marks
        schema = {**(schema if isinstance(schema, Mapping) else {}), "type": NO_STRING}
    written = lark.json(_with_definitions(function, schema), lenient=not function.strict)
    return f"{lark.text(around)} {written} {lark.text(around + closing)}"


def _text(function: Function, schema: Schema) -> str:
    """A terminal: the strings of a schema, as they are."""
    assert isinstance(schema, Mapping)
    if function.strict:
        _refuse_others(function, schema, OF_STRINGS | {"anyOf", "oneOf"})
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            if function.strict and OF_STRINGS.difference({"type"}) & schema.keys():
                raise _refused(function, f"has {union} beside what else it says of a string")
            return " | ".join(f"({_text(function, choice)})" for choice in schema[union])
    words = [schema["const"]] if "const" in schema else schema.get("enum")
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    length = f"/(?s:.{{{least},{most}}})/" if (least, most) != (0, "") else ANY
    if isinstance(words, list):
        spelt = [json.dumps(word) for word in words if isinstance(word, str) and word]
        return f"({' | '.join(spelt or ['/[]/'])}) & {length}"
    return length


def _refuse_others(function: Function, schema: Schema, known: set[str]) -> None:
    for keyword in schema if isinstance(schema, Mapping) else ():
        if keyword not in known | SAYING_NOTHING:
            raise _refused(function, f"says {keyword} of what the model writes as text")


def _with_definitions(function: Function, schema: Schema) -> dict[str, Any]:
    """A schema that stands alone."""
    whole = {**(schema if isinstance(schema, Mapping) else {})}
    for name in DEFINITIONS:
        if name in function.parameters:
            whole[name] = function.parameters[name]
    for reference in _references(whole):
        if not reference.startswith(tuple(f"#/{name}/" for name in DEFINITIONS)):
            raise _refused(function, f"refers to {reference[:60]!r}; arguments can refer to its $defs alone")
    return whole


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _refused(function: Function, why: str) -> UsageError:
    return UsageError(
        f"Calls of {function.name} cannot be held to its schema: it {why}.",
        "Change its schema, or ask for it without strict.",
    )
