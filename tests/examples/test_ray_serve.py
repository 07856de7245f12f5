"""The example of Ray Serve: two replicas of the bundled model answer as one server does. `make ray` runs this."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import dali
from dali.errors import UsageError
from served import STORY, served, until

pytest.importorskip("ray.serve", reason="Ray is not here: `make ray` installs it and runs these.")
pytestmark = pytest.mark.ray

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve"
CHAT, KEY = "/dali/v1/chat/completions", {"Authorization": "Bearer k"}
EXACT = {"temperature": 0, "max_tokens": 24, "logprobs": True}


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Ray of its own, on this machine, that serves the example below /dali."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = {"dali": "dali-tiny --parallel 1 --api-key k", "replicas": 2, "cpus": 1}
    application = {"name": "dali", "import_path": "app:build", "route_prefix": "/dali", "args": arguments}
    config = folder / "serve.yaml"
    config.write_text(json.dumps({"http_options": {"port": port}, "applications": [application]}))
    short = tempfile.mkdtemp(prefix="ray")  # the names of its sockets may have 107 letters
    path = os.pathsep.join([str(Path(dali.__file__).parents[1]), str(EXAMPLE)])
    own = {"PYTHONPATH": path, "HOME": str(folder), "RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(config)],
            env=os.environ | own | {"DALI_CACHE_DIR": str(folder / "cache")},
            cwd=EXAMPLE,
            stdout=log,
            stderr=log,
        )
        try:
            until(lambda: is_up(f"http://127.0.0.1:{port}/dali/health") or process.poll() is not None, 240)
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            shutil.rmtree(short, ignore_errors=True)


def is_up(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=20).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def http(tmp_path_factory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("ray")
    with cluster(folder) as url, httpx2.Client(base_url=url, timeout=60, headers=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def alone(dali_tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with dali.load(str(dali_tiny)) as llm, served(llm) as found:
            yield found


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"dali": "--host 0.0.0.0"}, "--host"),
        ({"dali": "--parallel 0"}, "--parallel cannot be '0'"),
        ({"dali": "a b"}, "one MODEL"),
        ({"replica": "2"}, "replica"),
        ({"replicas": "many"}, "many"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(given, problem):
    from app import build

    with pytest.raises(ValueError if "dali" not in given else UsageError, match=problem):
        build(given)


def said(answer: dict[str, Any]) -> tuple[str, list[Any]]:
    """Text, and each token's log probability: all that differs where a bit does."""
    [choice] = answer["choices"]
    return choice["message"]["content"], choice["logprobs"]["content"]


def replica_of(http: httpx2.Client, **session: str) -> str:
    return http.get("/dali/v1/models", headers=session).headers["x-replica"]


def test_both_replicas_answer_as_one_server_does(http, alone):
    alone_said = said(alone.post("/v1/chat/completions", {"messages": STORY} | EXACT)[1])
    by_replica = {}
    for session in range(20):
        answer = http.post(CHAT, json={"messages": STORY} | EXACT, headers={"x-session-id": str(session)})
        by_replica[answer.headers["x-replica"]] = said(answer.json())
        if len(by_replica) == 2:
            break
    assert list(by_replica.values()) == [alone_said, alone_said]


def test_a_stream_comes_piece_by_piece_and_is_the_whole_answer(http, alone):
    body = {"messages": STORY, "temperature": 0, "max_tokens": 24, "stream": True}
    with http.stream("POST", CHAT, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, last = [
            line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")
        ]
    assert last == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert len(pieces) > 20
    assert "".join(pieces) == said(alone.post("/v1/chat/completions", {"messages": STORY} | EXACT)[1])[0]


def test_a_conversation_stays_where_its_beginning_is_kept(http):
    """Without a word of the client's on which conversation it is."""
    for number in range(4):
        messages = [{"role": "user", "content": f"Tell me story number {number} about a little dog."}]
        first = http.post(CHAT, json={"messages": messages, "max_tokens": 8})
        messages += [first.json()["choices"][0]["message"], {"role": "user", "content": "Go on."}]
        second = http.post(CHAT, json={"messages": messages, "max_tokens": 8})
        assert second.headers["x-replica"] == first.headers["x-replica"]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 10


def test_a_busy_replica_leaves_what_comes_to_the_other(http):
    session = {"x-session-id": "mine"}
    home = replica_of(http, **session)
    long = {"messages": STORY, "ignore_eos": True, "stream": True}  # to the end of the context
    with http.stream("POST", CHAT, json=long, headers=session) as busy:
        assert busy.headers["x-replica"] == home
        lines = busy.iter_lines()  # without a name it would be closed, and the answer with it
        next(lines)
        assert replica_of(http, **session) != home
    until(lambda: replica_of(http, **session) == home)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(http, stream):
    session = {"x-session-id": "leaving"}

    def aborted() -> int:
        return http.get("/dali/v1/stats", headers=session).json()["finished"]["abort"]

    before = aborted()
    body = {"messages": STORY, "ignore_eos": True, "stream": stream}  # to the end of the context

    def left() -> bool:
        """One that leaves early enough has not been heard of yet."""
        if stream:
            with http.stream("POST", CHAT, json=body, headers=session) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                http.post(CHAT, json=body, headers=session, timeout=0.2)
        return aborted() > before

    until(left, 60)


def test_below_a_prefix_health_is_open_and_all_else_needs_the_key(http):
    stranger = {"Authorization": "Bearer wrong"}
    assert http.get("/dali/health", headers=stranger).json() == {"status": "ok"}
    refused = http.get("/dali/v1/models", headers=stranger)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
