"""What the server has: /v1/models and /props as llama-server's clients know them, and /health."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import dali
from dali.engine.text.structure import generic_tools, tells_calls
from dali.serve.http.errors import ApiError
from dali.serve.serving import Serving, serving


async def health(request: Request) -> Response:
    _ = serving(request).service
    return JSONResponse({"status": "ok"})


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(serving(request))]})


async def model(request: Request) -> Response:
    host, name = serving(request), request.path_params["name"]
    if name not in (*host.names, host.llm.name):
        raise ApiError(404, f"There is no model {name[:80]!r} here.", param="model", code="model_not_found")
    return JSONResponse(_model(host))


async def props(request: Request) -> Response:
    host = serving(request)
    llm = host.llm
    return JSONResponse(
        {
            "default_generation_settings": {"n_ctx": llm.ctx_size, "params": _sampling(llm.defaults)},
            "total_slots": host.service.slots,
            "model_alias": host.name,
            "model_path": llm.name,
            "model_ftype": llm.format_name,
            "modalities": {"vision": False, "audio": False},
            "chat_template": _template(llm.tokenizer),
            "chat_template_caps": _capabilities(llm.tokenizer),
            "bos_token": llm.tokenizer.bos_token or "",
            "eos_token": llm.tokenizer.eos_token or "",
            "build_info": f"dali {dali.__version__}",
            "is_sleeping": False,
        }
    )


def _model(host: Serving) -> dict[str, Any]:
    llm = host.llm
    config = llm.model.config.get_text_config()
    return {
        "id": host.name,
        "aliases": list(host.names[1:]),
        "object": "model",
        "created": host.created,
        "owned_by": "dali",
        "meta": {
            "n_vocab": config.vocab_size,
            "n_ctx": llm.ctx_size,
            "n_ctx_train": config.max_position_embeddings,
            "n_embd": config.hidden_size,
            "size": llm.dense_bytes + llm.expert_bytes,
            "ftype": llm.format_name,
        },
        "max_model_len": llm.ctx_size,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
    }


def _sampling(defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if isinstance(value, int | float)}


def _template(tokenizer: Any) -> str:
    """The one that conversations without tools go through."""
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""


def _capabilities(tokenizer: Any) -> dict[str, bool]:
    """What clients look for before they offer tools."""
    tools = tells_calls(tokenizer) and not generic_tools(tokenizer)
    return {"supports_tools": tools, "supports_tool_calls": tools, "supports_parallel_tool_calls": tools}


ROUTES = [
    Route("/health", health),
    Route("/v1/health", health),
    Route("/v1/models", models),
    Route("/models", models),
    Route("/v1/models/{name:path}", model),
    Route("/props", props),
]
