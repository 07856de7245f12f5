"""/v1/chat/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dali.serve.generation.ask import Ask
from dali.serve.generation.events import Answer, Delta, Part, Reasoning, Text
from dali.serve.http.body import read_fields
from dali.serve.http.fields import Fields
from dali.serve.openai.logprobs import chat_logprobs
from dali.serve.openai.messages import messages_of
from dali.serve.openai.reply import Form, reply
from dali.serve.openai.sampling import choices_of, sampling_of
from dali.serve.openai.shape import shape_of
from dali.serve.openai.template import template_of
from dali.serve.openai.tools import tools_of
from dali.serve.serving import serving

if TYPE_CHECKING:
    from dali.engine.logprobs import TokenLogprob
    from dali.llm import LLM

MOST_TOP = 20  # likeliest tokens a token


async def chat(request: Request) -> Response:
    host = serving(request)
    fields = await read_fields(request)
    host.check_model(fields)
    ask = ask_of(fields, host.llm)
    return await reply(request, host, ask, Form.of(fields), ChatChoices(host.llm, ask))


def ask_of(fields: Fields, llm: LLM) -> Ask:
    """ApiError: what cannot be meant, and what is not supported, by name."""
    refuse_unsupported(fields)
    sampling = sampling_of(fields, llm)
    sampling["max_tokens"] = _most_tokens(fields)
    sampling["logprobs"] = _logprobs(fields)
    tools = tools_of(fields)
    return Ask(
        messages=messages_of(fields, llm),
        template=template_of(fields, llm),
        tools=tools.schemas,
        calls=tools.calls,
        shape=shape_of(fields, tools),
        sampling=sampling,
        n=choices_of(fields),
    )


def refuse_unsupported(fields: Fields) -> None:
    fields.refuse("functions", "it was replaced by tools.")
    fields.refuse("function_call", "it was replaced by tool_choice.", "none", "auto")
    fields.refuse("modalities", "answers are text.", ["text"])
    fields.refuse("audio", "answers are text.")
    fields.refuse("web_search_options", "the server looks nothing up.")


def _most_tokens(fields: Fields) -> int | None:
    """OpenAI's new name for it, or the old one."""
    new, old = fields.whole("max_completion_tokens", 1), fields.whole("max_tokens", 1)
    return old if new is None else new


def _logprobs(fields: Fields) -> int | None:
    top = fields.whole("top_logprobs", 0, MOST_TOP)
    if not fields.flag("logprobs"):
        if top:
            raise fields.wrong("top_logprobs", "left out where logprobs is not true")
        return None
    return top or 0


class ChatChoices:
    """Messages; a reply.Choices. Log probabilities of tokens whose text is held back wait for it."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, llm: LLM, ask: Ask) -> None:
        self._tokenizer = llm.tokenizer
        self._wants_logprobs = ask.sampling.get("logprobs") is not None
        self._waiting: list[list[TokenLogprob]] = [[] for _ in range(ask.choices)]

    def opening(self, choice: int) -> list[dict[str, Any]]:
        return [_chunk(choice, {"role": "assistant", "content": ""})]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        waiting = self._waiting[delta.choice]
        waiting += delta.logprobs
        chunks = [_chunk(delta.choice, _said(part)) for part in delta.parts]
        if waiting and delta.finish is not None and not chunks:
            chunks = [_chunk(delta.choice, {"content": ""})]
        if waiting and chunks:
            chunks[-1]["logprobs"] = chat_logprobs(self._tokenizer, waiting)
            waiting.clear()
        if delta.finish is not None:
            chunks.append(_chunk(delta.choice, {}, delta.finish.reason))
        return chunks

    def whole(self, choice: int, answer: Answer) -> dict[str, Any]:
        content = None if answer.calls and not answer.text else answer.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        found = chat_logprobs(self._tokenizer, answer.logprobs) if self._wants_logprobs else None
        return {
            "index": choice,
            "message": message,
            "logprobs": found,
            "finish_reason": answer.finish.reason,
        }


def _chunk(choice: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _said(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"content": part.text}
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    function = {"name": part.name} if part.name else {}
    call: dict[str, Any] = {"index": part.index, "function": function | {"arguments": part.arguments}}
    return {"tool_calls": [({"id": part.id, "type": "function"} if part.id else {}) | call]}


ROUTES = [Route(path, chat, methods=["POST"]) for path in ("/v1/chat/completions", "/chat/completions")]
