"""What a request says that the answer has to be: OpenAI's `response_format`, and what llama.cpp has beside it."""

from __future__ import annotations

from typing import Any

from dali.engine.constraint.shape import Shape
from dali.serve.http.errors import invalid
from dali.serve.http.fields import Fields
from dali.serve.openai.tools import Tools

FORMATS = ("text", "json_object", "json_schema")


def shape_of(fields: Fields, tools: Tools | None = None) -> Shape:
    """ApiError: a format that is none, or more than one."""
    schema = schema_of_format(fields, "response_format", "json_schema")
    own, grammar = fields.mapping("json_schema"), fields.text("grammar")
    given = [one for one in (schema, own, grammar) if one is not None]
    if len(given) > 1:
        raise invalid(
            "response_format, json_schema and grammar each say what the answer has to be. Leave all but one out.",
            "response_format",
        )
    return shape(schema if own is None else own, tools, grammar)


def shape(schema: dict[str, Any] | None, tools: Tools | None, grammar: str | None = None) -> Shape:
    tools = tools or Tools()
    return Shape(schema, grammar, tools.must_call, tools.only, tools.strict)


def schema_of_format(fields: Fields, name: str, inner: str | None = None) -> dict[str, Any] | None:
    """The JSON schema that a format asks for; None for text. inner: the field that has it, where it is not in the format
    itself."""
    asked = fields.fields(name)
    kind = asked.one_of("type", FORMATS)
    if kind is None and name in fields:
        raise asked.wrong("type", f"one of {', '.join(FORMATS)}")
    if kind in (None, "text"):
        return None
    holder = asked.fields(inner) if inner and kind == "json_schema" else asked
    schema = holder.mapping("schema")
    if schema is None and kind == "json_schema":
        raise holder.wrong("schema", "a JSON schema")
    return {"type": "object"} if schema is None else schema
