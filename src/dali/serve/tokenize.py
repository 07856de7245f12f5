"""Text to tokens and back, and a conversation as the model reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dali.engine.text.token_bytes import token_bytes
from dali.serve.http.body import read_fields
from dali.serve.http.errors import invalid
from dali.serve.http.fields import Fields
from dali.serve.openai.messages import messages_of
from dali.serve.openai.template import template_of
from dali.serve.openai.tools import tools_of
from dali.serve.serving import serving

if TYPE_CHECKING:
    from dali.llm import LLM


MOST = 2**22  # letters or tokens: a tokenizer takes seconds for so many, and others wait for it


async def tokenize(request: Request) -> Response:
    """{"content": text} -> {"tokens": [...]}; `add_special`: after what begins a text; `with_pieces`: each with its text."""
    fields, llm = await read_fields(request), serving(request).llm
    content = fields.text("content")
    if content is None:
        raise invalid("There is no content.", "content")
    if len(content) > MOST:
        raise invalid(f"The content has more than {MOST} letters.", "content")
    ids = await asyncio.to_thread(_ids, llm, content, bool(fields.flag("add_special")))
    if fields.flag("with_pieces"):
        return JSONResponse({"tokens": [{"id": id, "piece": _piece(llm.tokenizer, id)} for id in ids]})
    return JSONResponse({"tokens": ids})


async def detokenize(request: Request) -> Response:
    fields, llm = await read_fields(request), serving(request).llm
    ids = fields.list("tokens")
    vocabulary = llm.model.config.get_text_config().vocab_size
    if ids is None or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
        raise fields.wrong("tokens", f"an array of whole numbers from 0 to {vocabulary - 1}")
    if len(ids) > MOST:
        raise invalid(f"There are more than {MOST} tokens.", "tokens")
    text = await asyncio.to_thread(llm.decode, ids)
    return JSONResponse({"content": text})


async def apply_template(request: Request) -> Response:
    """{"messages": [...]} -> {"prompt": text}, as /v1/chat/completions would give it to the model."""
    fields, llm = await read_fields(request), serving(request).llm
    ids = await asyncio.to_thread(_prompt, llm, fields)
    return JSONResponse({"prompt": await asyncio.to_thread(llm.decode, ids), "tokens": len(ids)})


def _ids(llm: LLM, text: str, begins: bool) -> list[int]:
    return llm.encode(text) if begins else llm.encode_further(text)


def _prompt(llm: LLM, fields: Fields) -> list[int]:
    messages = messages_of(fields, llm)
    return llm.chat_prompt(messages, tools=tools_of(fields).schemas, template=template_of(fields, llm))


def _piece(tokenizer: Any, id: int) -> Any:
    """Its text; its bytes, where they are no text by themselves."""
    spelt = token_bytes(tokenizer, id)
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return list(spelt)


ROUTES = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/apply-template", apply_template, methods=["POST"]),
]
