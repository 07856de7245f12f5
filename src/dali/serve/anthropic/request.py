"""What a request for a message asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.serve.anthropic.conversation import messages_of
from dali.serve.generation.ask import Ask
from dali.serve.http.fields import Fields
from dali.serve.openai.sampling import sampling_of, stops_of
from dali.serve.openai.shape import schema_of_format, shape
from dali.serve.openai.template import effort_hint, thinking_variables
from dali.serve.openai.tools import Tools, forced
from dali.serve.openai.tools import schema_of as tool_schema

if TYPE_CHECKING:
    from dali.llm import LLM

THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
CHOICES = ("auto", "any", "tool", "none")


def ask_of(fields: Fields, llm: LLM) -> Ask:
    """ApiError: what cannot be meant, and what is not supported, by name."""
    fields.refuse("mcp_servers", "the server calls none.")
    fields.refuse("container", "the server has none.")
    sampling = sampling_of(fields, llm)
    sampling["max_tokens"] = fields.whole("max_tokens", 1)
    sampling["stop"] = stops_of(fields, "stop_sequences")
    tools = tools_of(fields)
    return Ask(
        messages=messages_of(fields),
        template=template_of(fields, llm),
        tools=tools.schemas,
        calls=tools.calls,
        shape=shape(schema_of(fields), tools),
        sampling=sampling,
    )


def schema_of(fields: Fields) -> dict[str, Any] | None:
    """What the answer has to follow; `output_format` is its older name."""
    new, old = (
        schema_of_format(fields.fields("output_config"), "format"),
        schema_of_format(fields, "output_format"),
    )
    return old if new is None else new


def template_of(fields: Fields, llm: LLM) -> dict[str, Any]:
    """The model reasons where `thinking` says so, and it can be told; where it says nothing, as the server was started, or not at
    all. A budget of thinking is a hint, as is an effort: both pass where they come to nothing."""
    kind = fields.fields("thinking").one_of("type", THINKING.keys())
    effort = fields.fields("output_config").text("effort")
    variables = thinking_variables(THINKING[kind or "disabled"], llm)
    if kind is None:
        variables = {name: value for name, value in variables.items() if name not in llm.variables}
    return variables | effort_hint(effort, llm)


def tools_of(fields: Fields) -> Tools:
    """Tools with a schema; those that only Anthropic's server runs, or its models know, are left out, and so never called."""
    own = [tool for tool in fields.each("tools") if tool.text("type") in (None, "custom")]
    schemas = [tool_schema(tool, "input_schema") for tool in own]
    strict = [tool.text("name") or "" for tool in own if tool.flag("strict")]
    choice = fields.fields("tool_choice")
    kind = choice.one_of("type", CHOICES)
    if "tool_choice" in fields and kind is None:
        raise choice.wrong("type", f"one of {', '.join(CHOICES)}")
    named = choice.text("name") if kind == "tool" else ""
    if kind == "tool" and not named:
        raise choice.wrong("name", "the name of a tool")
    if kind == "none" or (not schemas and kind in (None, "auto")):
        return Tools()
    one = kind == "tool" or choice.flag("disable_parallel_tool_use")
    return forced(schemas, strict, 1 if one else None, kind == "any", named or "")
