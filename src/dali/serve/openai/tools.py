"""The tools that a request lets the model call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.serve.http.errors import UNSUPPORTED, ApiError
from dali.serve.http.fields import Fields

LETTERS = 256  # of a tool's name


@dataclass(frozen=True)
class Tools:
    """`schemas`: as chat templates take them, None for none; `calls`: after how many the answer ends, None for any number."""

    schemas: list[dict[str, Any]] | None = None
    calls: int | None = None


def tools_of(fields: Fields) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat. ApiError: tools of other kinds than functions, and choices that
    cannot be enforced."""
    schemas = []
    for tool in fields.each("tools"):
        kind = tool.text("type") or "function"
        if kind != "function":
            raise ApiError(
                400, f"A tool of the type {kind[:40]!r} is not supported: tools are functions.", param="tools", code=UNSUPPORTED,
            )  # fmt: skip
        schemas.append(schema_of(tool.fields("function")))
    return chosen(fields, schemas)


def chosen(fields: Fields, schemas: list[dict[str, Any]]) -> Tools:
    """What `tool_choice` and `parallel_tool_calls` leave of the tools."""
    choice = fields.any("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # chat's form, or that of responses
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise fields.wrong("tool_choice", "an object with the tools that are allowed")
        names = [_name(tool) for tool in allowed["tools"]]
        schemas = [schema for schema in schemas if schema["function"]["name"] in names]
        choice = allowed.get("mode", "auto")
    named = _name(choice) if isinstance(choice, dict) else None
    if choice == "none" or (choice is None and not schemas):
        return Tools()
    if choice == "required" or named:
        what = f"the function {named[:60]!r}" if named else "a call"
        raise ApiError(
            400, f"tool_choice asks for {what}, and no model can be made to call here. Leave it to the model with auto.",
            param="tool_choice", code=UNSUPPORTED,
        )  # fmt: skip
    if choice not in (None, "auto"):
        raise fields.wrong("tool_choice", "none, auto, required, or a function")
    return Tools(schemas or None, 1 if fields.flag("parallel_tool_calls") is False else None)


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


def _name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
