"""What a request for a message asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.serve.anthropic.conversation import messages_of
from dali.serve.generation.ask import Ask
from dali.serve.http.errors import UNSUPPORTED, ApiError
from dali.serve.http.fields import Fields
from dali.serve.openai.sampling import sampling_of, stops_of
from dali.serve.openai.template import effort_hint, thinking_variables
from dali.serve.openai.tools import Tools, schema_of

if TYPE_CHECKING:
    from dali.llm import LLM

THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
CHOICES = ("auto", "any", "tool", "none")


def ask_of(fields: Fields, llm: LLM) -> Ask:
    """ApiError: what cannot be meant, and what is not supported, by name."""
    fields.refuse("mcp_servers", "the server calls none.")
    fields.refuse("container", "the server has none.")
    fields.refuse("output_format", "answers are text.")
    fields.fields("output_config").refuse("format", "answers are text.")
    sampling = sampling_of(fields, llm)
    sampling["max_tokens"] = fields.whole("max_tokens", 1)
    sampling["stop"] = stops_of(fields, "stop_sequences")
    tools = tools_of(fields)
    return Ask(
        messages=messages_of(fields),
        template=template_of(fields, llm),
        tools=tools.schemas,
        calls=tools.calls,
        sampling=sampling,
    )


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
    schemas = [schema_of(tool, "input_schema") for tool in own]
    choice = fields.fields("tool_choice")
    kind = choice.one_of("type", CHOICES)
    if "tool_choice" in fields and kind is None:
        raise choice.wrong("type", f"one of {', '.join(CHOICES)}")
    if kind in ("any", "tool"):
        raise ApiError(
            400, f"tool_choice is {kind!r}, and no model can be made to call here. Leave it to the model with auto.",
            param="tool_choice", code=UNSUPPORTED,
        )  # fmt: skip
    if kind == "none" or not schemas:
        return Tools()
    return Tools(schemas, 1 if choice.flag("disable_parallel_tool_use") else None)
