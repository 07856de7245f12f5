"""What a request for a response asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali.serve.generation.ask import Ask
from dali.serve.http.fields import Fields
from dali.serve.openai.messages import known_roles
from dali.serve.openai.sampling import sampling_of
from dali.serve.openai.shape import schema_of_format, shape
from dali.serve.openai.template import EFFORTS, effort_variables
from dali.serve.openai.tools import Tools, chosen, schema_of
from dali.serve.responses.items import messages_of

if TYPE_CHECKING:
    from dali.llm import LLM

KEPT = "the server keeps no answers. Send the whole conversation as input."


def ask_of(fields: Fields, llm: LLM) -> Ask:
    """ApiError: what cannot be meant, and what is not supported, by name."""
    refuse_unsupported(fields)
    sampling = sampling_of(fields, llm)
    sampling["max_tokens"] = fields.whole("max_output_tokens", 1)
    effort = fields.fields("reasoning").one_of("effort", EFFORTS)
    own = fields.mapping("chat_template_kwargs") or {}
    tools = tools_of(fields)
    return Ask(
        messages=known_roles(messages_of(fields), llm),
        template=effort_variables(effort, llm, "reasoning.effort") | own,
        tools=tools.schemas,
        calls=tools.calls,
        shape=shape(schema_of_format(fields.fields("text"), "format"), tools),
        sampling=sampling,
    )


def refuse_unsupported(fields: Fields) -> None:
    fields.refuse("previous_response_id", KEPT)
    fields.refuse("conversation", KEPT)
    fields.refuse("prompt", "the server keeps no prompts.")
    fields.refuse("background", "answers are given while the client waits.")
    fields.refuse("top_logprobs", "log probabilities are in /v1/chat/completions.", 0)
    text = fields.fields("text")
    text.refuse("verbosity", "the model cannot be told.", "medium")


def tools_of(fields: Fields) -> Tools:
    """Functions; tools of other types are left out, and so the model never calls them: clients such as Codex send them always."""
    given = [tool for tool in fields.each("tools") if tool.text("type") in (None, "function")]
    strict = [tool.text("name") or "" for tool in given if tool.flag("strict")]
    return chosen(fields, [schema_of(tool) for tool in given], strict)


def echo_of(fields: Fields, llm: LLM) -> dict[str, Any]:
    """What a response repeats of its request."""
    defaults = llm.defaults
    temperature, top_p = fields.number("temperature"), fields.number("top_p")
    return {
        "instructions": fields.text("instructions"),
        "max_output_tokens": fields.whole("max_output_tokens"),
        "metadata": fields.mapping("metadata") or {},
        "parallel_tool_calls": fields.flag("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": fields.fields("reasoning").text("effort"), "summary": None},
        "store": False,
        "temperature": defaults.get("temperature") if temperature is None else temperature,
        "text": {"format": fields.fields("text").mapping("format") or {"type": "text"}},
        "tool_choice": fields.any("tool_choice") or "auto",
        "tools": fields.list("tools") or [],
        "top_p": defaults.get("top_p") if top_p is None else top_p,
        "truncation": "disabled",
        "user": fields.text("user"),
    }
