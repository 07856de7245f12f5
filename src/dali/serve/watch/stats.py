"""GET /v1/stats: counts since the server began, for the page and for programs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dali.serve.serving import serving
from dali.serve.watch.metrics import DRAFTED


async def stats(request: Request) -> Response:
    service = serving(request).service
    traffic, llm = service.traffic, service.llm
    experts = llm.stats()
    workload = experts.pop("workload")
    return JSONResponse(
        {
            "running": service.running,
            "waiting": service.waiting,
            "prompt_tokens": traffic.prompt_tokens,
            "cached_tokens": traffic.cached_tokens,
            "generated_tokens": traffic.generated_tokens,
            "finished": dict(traffic.finished),
            "draft_tokens": {outcome: experts.pop(f"draft_{outcome}") for outcome in DRAFTED},
            "accelerator": llm.executor is not None,
            "workload": workload,
            "experts": experts,
        }
    )


ROUTES = [Route("/v1/stats", stats)]
