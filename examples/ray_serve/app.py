"""`dali serve` on several machines: replicas of the same server behind Ray Serve.

    serve run app:build dali="org/name -c 16384 --api-key KEY" replicas=4 cpus=16

`dali` has the words and flags of `dali serve`. Each replica holds the whole model; a conversation stays with one of them, whose
prefix cache has its beginning, unless that one is busy.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from call import answer, carried
from conversation import conversation_of
from dali.cli.serve import VERB, Settings, checked
from dali.errors import UsageError
from dali.serve.app import make_app
from dali.serve.http.body import read_body
from dali.serve.http.errors import ApiError, error_response
from dali.serve.http.path import own_path
from dali.serve.memory import limit_states
from dali.serve.service import Service
from dali.serve.serving import Serving

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
REPLICA = b"x-replica"  # header of an answer: which replica gave it
HEALTH = {
    "type": "http",
    "method": "GET",
    "path": "/health",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
}


class Arguments(BaseModel):
    """What `serve run` takes as NAME=VALUE."""

    model_config = ConfigDict(extra="forbid")

    dali: str = ""
    """MODEL and flags, as `dali serve` takes them."""
    replicas: int = 1
    cpus: int = os.cpu_count() or 1
    """Cores of each replica, and threads; all of a machine's, unless several replicas are to share one."""


def settings_of(flags: str) -> Settings:
    settings = VERB.settings(shlex.split(flags))
    if settings.host is not None or settings.port is not None:
        raise UsageError(
            "Ray's proxies listen, not dali, so --host and --port say nothing here.",
            "Give `serve start` its --http-host and --http-port.",
        )
    return settings


class Replica:
    """The server of `dali serve`, its requests carried here by Ray. Ready when the model is loaded."""

    def __init__(self, flags: str) -> None:
        settings = settings_of(flags)
        options, load = checked(settings)
        serving = Serving(options)
        llm = load()
        limit_states(llm, settings.ram)
        serving.open(Service(llm, options.parallel, options.queue))
        self._app = make_app(serving)
        self._name = serve.get_replica_context().replica_id.unique_id.encode()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        async for message in answer(self._app, scope, body):
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (REPLICA, self._name)]}
            yield message

    async def check_health(self) -> None:
        """Ray asks now and then, and starts another replica where this raises."""
        [start, *_] = [message async for message in answer(self._app, HEALTH, b"")]
        if start["status"] != 200:
            raise RuntimeError(f"/health says {start['status']}")


class Front:
    """Receives requests from Ray's proxies, and hands each to the replica that has its conversation."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        try:
            body = await read_body(request)
        except ApiError as error:
            return error_response(own_path(request.scope), error)
        key = await asyncio.to_thread(conversation_of, request.headers, body)
        replicas = self._replicas if key is None else self._replicas.options(session_id=key)
        return Relayed(replicas, body)


class Relayed(Response):
    """A replica's answer, sent on as it comes. A client that leaves cancels it."""

    def __init__(self, replicas: DeploymentHandle, body: bytes) -> None:
        super().__init__()
        self._replicas = replicas
        self._asked = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages = self._replicas.answer.remote(carried(scope), self._asked)
        try:
            async for message in messages:
                await send(message)
        except BackPressureError:
            full = ApiError(429, "All replicas have as much to do as may wait. Try again later.", "rate_limit_error",
                            code="queue_full", headers={"Retry-After": "5"})  # fmt: skip
            await error_response(own_path(scope), full)(scope, receive, send)
        finally:
            messages.cancel()


def build(given: dict[str, str]) -> serve.Application:
    """given: the fields of Arguments. UsageError: flags that cannot be meant, before anything is started."""
    arguments = Arguments.model_validate(given)
    settings = settings_of(arguments.dali)
    options, _ = checked(settings)
    replicas = serve.deployment(Replica).options(
        num_replicas=arguments.replicas,
        max_ongoing_requests=options.parallel,  # one more goes to the next replica on the ring
        max_queued_requests=options.queue,  # while all are busy
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={
            "num_cpus": arguments.cpus,
            "num_gpus": 1 if (settings.device or "").startswith("cuda") else 0,
        },
    )
    front = serve.deployment(Front).options(
        max_ongoing_requests=10_000,  # they wait at the replicas
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replicas.bind(arguments.dali))
