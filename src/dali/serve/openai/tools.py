"""The tools that a request lets the model call."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dali.serve.http.errors import UNSUPPORTED, ApiError, invalid
from dali.serve.http.fields import Fields

LETTERS = 256  # of a tool's name


@dataclass(frozen=True)
class Tools:
    """`schemas`: as chat templates take them, None for none; `calls`: after how many the answer ends, None for any number;
    `must_call`: the answer is a call, of the tool `only` where one is named; `strict`: tools whose arguments have to follow their
    schemas."""

    schemas: list[dict[str, Any]] | None = None
    calls: int | None = None
    must_call: bool = False
    only: str | None = None
    strict: frozenset[str] = frozenset()


def tools_of(fields: Fields) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat. ApiError: tools of other kinds than functions, and choices that
    are none."""
    schemas, strict = [], set()
    for tool in fields.each("tools"):
        kind = tool.text("type") or "function"
        if kind != "function":
            raise ApiError(
                400, f"A tool of the type {kind[:40]!r} is not supported: tools are functions.", param="tools", code=UNSUPPORTED,
            )  # fmt: skip
        schemas.append(schema_of(tool.fields("function")))
        if tool.fields("function").flag("strict"):
            strict.add(name_of(schemas[-1]))
    return chosen(fields, schemas, strict)


def chosen(fields: Fields, schemas: list[dict[str, Any]], strict: Collection[str] = ()) -> Tools:
    """What `tool_choice` and `parallel_tool_calls` leave of the tools, those named in `strict` among them."""
    choice = fields.any("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # chat's form, or that of responses
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise fields.wrong("tool_choice", "an object with the tools that are allowed")
        names = [name_of(tool) for tool in allowed["tools"]]
        schemas = [schema for schema in schemas if name_of(schema) in names]
        choice = allowed.get("mode", "auto")
    named = name_of(choice) if isinstance(choice, dict) else ""
    if choice == "none" or (choice is None and not schemas):
        return Tools()
    if not named and choice not in (None, "auto", "required"):
        raise fields.wrong("tool_choice", "none, auto, required, or a function")
    one = bool(named) or fields.flag("parallel_tool_calls") is False
    return forced(schemas, strict, 1 if one else None, choice == "required", named)


def forced(
    schemas: list[dict[str, Any]], strict: Collection[str], calls: int | None, must_call: bool, named: str
) -> Tools:
    """Tools of which one has to be called, or the one that is `named`, or none. ApiError where there is no such tool."""
    names = {name_of(schema) for schema in schemas}
    if named and named not in names:
        raise invalid(
            f"tool_choice asks for the function {named[:60]!r}, which is not among the tools.", "tool_choice"
        )
    if must_call and not schemas:
        raise invalid("tool_choice asks for a call, and there are no tools.", "tool_choice")
    held = frozenset(names.intersection(strict))
    return Tools(schemas or None, calls, must_call or bool(named), named or None, held)


def schema_of(function: Fields, parameters: str = "parameters") -> dict[str, Any]:
    """A function as chat templates take it: some fail where it says nothing of itself or of its parameters. parameters: the name
    of the field with their schema."""
    name = function.text("name")
    if not name or len(name) > LETTERS:
        raise function.wrong("name", f"the function's name, of at most {LETTERS} letters")
    description = function.text("description") or ""
    schema = function.mapping(parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


def name_of(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
