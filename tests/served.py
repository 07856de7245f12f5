"""A server in this process, and what clients see of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from dali.llm import LLM
from dali.serve.app import make_app
from dali.serve.memory import limit_states
from dali.serve.options import ServeOptions
from dali.serve.server import Server
from dali.serve.service import Service
from dali.serve.serving import Serving

STORY = [{"role": "user", "content": "Tell me a story about a little dog."}]


@dataclass
class Served:
    """A model that is served."""

    url: str
    llm: LLM
    service: Service
    http: httpx2.Client

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """Status and JSON of an answer that comes whole."""
        answer = self.http.post(path, json=body, **more)
        return answer.status_code, answer.json()

    def lines(self, path: str, body: Any) -> list[str]:
        """The lines of a stream that are not empty."""
        with self.http.stream("POST", path, json=body | {"stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [line for line in answer.iter_lines() if line]

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream that ends as it should."""
        *events, last = [line for line in self.lines(path, body) if not line.startswith(":")]
        assert last == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]


@contextmanager
def served(llm: LLM, **options: Any) -> Iterator[Served]:
    asked = ServeOptions(port=0, **options)
    serving = Serving(asked)
    server = Server(make_app(serving), asked)
    server.start()
    limit_states(llm, None)
    service = Service(llm, asked.parallel, asked.queue)
    serving.open(service)
    try:
        with httpx2.Client(base_url=server.url, timeout=60) as http:
            yield Served(server.url, llm, service, http)
    finally:
        service.stop(0)
        server.stop()


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for what comes to hold in other threads."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.005)
