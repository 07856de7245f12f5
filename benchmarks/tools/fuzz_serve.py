"""Sends a server what no client should; each request must be answered, or refused in the form of its protocol.

    python benchmarks/tools/fuzz_serve.py [--inputs N] [--seed S]

The bundled model is served on a socket. Sound requests of every route are changed at random, as values (other types, numbers
beyond all bounds, arrays within arrays, halves of characters, fields of other routes), as bytes (cut off, doubled, no UTF-8), and
as HTTP (methods, paths, headers, lengths that are not those of the body, chunks, clients that leave). A status of 500 or above
counts as a failure, as does an error of another form, an answer that does not come within seconds, and whatever is left under way
in the end. The script prints such inputs by number, and exits with 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import dali
from dali.serve.app import ROUTES, make_app
from dali.serve.options import ServeOptions
from dali.serve.server import Server
from dali.serve.service import Service
from dali.serve.serving import Serving
from fuzz_settings import change, odd_value

SECONDS = 20  # within which an answer has to come
CLIENTS = 4
OUTCOMES = ("answered", "refused", "no HTTP", "left")
SCHEMA = {"type": "object", "properties": {"city": {"type": ["string", "null"], "enum": ["Paris"]}}}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
FUNCTION = {"name": "weather", "description": "x", "parameters": SCHEMA}
STORY = [{"role": "user", "content": "Tell me a story about a little dog."}]
CONVERSATION = [
    {"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None, "reasoning_content": "c", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "d"}, {"role": "system", "content": "e"},
]  # fmt: skip
SAMPLING = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "repeat_penalty": 1.1, "repeat_last_n": 8,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "stop": ["x"], "ignore_eos": False, "stream": True,
}  # fmt: skip
SOUND: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": STORY, "max_tokens": 2} | SAMPLING,
        {
            "messages": STORY, "max_tokens": 4,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
        },
        {
            "messages": STORY, "max_tokens": 4, "tool_choice": "required",
            "tools": [{"type": "function", "function": FUNCTION | {"strict": True}}],
        },
        {"messages": STORY, "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2, "n": 2, "model": "dali-tiny"},
        {
            "messages": CONVERSATION, "max_tokens": 2, "tool_choice": "auto", "parallel_tool_calls": False,
            "tools": [{"type": "function", "function": FUNCTION}], "stream": True, "stream_options": {"include_usage": True},
        },
    ],
    "/v1/completions": [
        {"prompt": "Once upon a time", "max_tokens": 2, "logprobs": 2, "echo": False, "suffix": None} | SAMPLING,
        {"prompt": [[5, 6, 7], [8]], "max_tokens": 2, "n": 2, "best_of": 2},
        {"prompt": "Once", "max_tokens": 4, "grammar": 'root ::= "a" [b-d]+ | item\nitem ::= "x"'},
        {"prompt": "Once", "max_tokens": 4, "json_schema": SCHEMA, "stream": True},
    ],
    "/v1/responses": [
        {"input": "Hi", "max_output_tokens": 4, "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
        {"input": "Hi", "max_output_tokens": 2, "stream": True, "store": True, "metadata": {"a": "b"}},
        {
            "max_output_tokens": 2, "instructions": "a", "reasoning": {"effort": "none"}, "text": {"format": {"type": "text"}},
            "tools": [{"type": "function"} | FUNCTION, {"type": "custom", "name": "x"}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "c"}]},
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "d"}]},
            ],
        },
    ],
    "/v1/messages": [
        {
            "messages": STORY, "max_tokens": 4, "tools": [{"name": "weather", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "weather"},
        },
        {"messages": STORY, "max_tokens": 2, "stream": True, "stop_sequences": ["x"], "temperature": 1},
        {
            "max_tokens": 2, "system": [{"type": "text", "text": "a"}], "thinking": {"type": "enabled", "budget_tokens": 5},
            "tools": [{"name": "weather", "input_schema": SCHEMA}], "tool_choice": {"type": "auto"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "c"}, {"type": "tool_use", "id": "a", "name": "weather", "input": {}},
                ]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "d"}]},
            ],
        },
    ],
    "/tokenize": [{"content": "Hi there", "add_special": True, "with_pieces": True}],
    "/detokenize": [{"tokens": [5, 6, 7]}],
    "/apply-template": [{"messages": CONVERSATION, "tools": [{"type": "function", "function": FUNCTION}]}],
    "/v1/embeddings": [{"input": "Hi"}],
}  # fmt: skip
SOUND["/v1/messages/count_tokens"] = SOUND["/v1/messages"]
NAMES = sorted({name for bodies in SOUND.values() for body in bodies for name in body})
PATHS = sorted({route.path.replace("{name:path}", "dali-tiny") for route in ROUTES} | {"/", "/nothing"})
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "post")
HEADERS = (
    ("Content-Type", "text/plain"), ("Content-Type", "application/json; charset=utf-16"), ("Accept", "x" * 5000),
    ("Accept", "application/openmetrics-text; version=1.0.0"), ("Origin", "http://elsewhere"), ("Host", "elsewhere"),
    ("Host", "[::1"), ("Host", ""), ("Authorization", "Bearer \xff"), ("Connection", "upgrade"), ("Upgrade", "websocket"),
    ("Expect", "100-continue"), ("X-Long", "a" * 40_000), ("Cookie", "a=b"), ("Accept-Encoding", "gzip, br"),
    ("Content-Encoding", "gzip"), ("Content-Length", "7"), ("Transfer-Encoding", "chunked"), ("Range", "bytes=0-1"),
    ("X-Api-Key", "none"), ("If-None-Match", "*"), ("Forwarded", "for=_x"), ("Content-Length", "-1"),
)  # fmt: skip


@dataclass
class Sent:
    """A request. `length`: what it says of its body's; `leaves`: whether the client reads no answer to its end, and `stays` so
    many seconds."""

    method: str = "POST"
    path: str = "/v1/chat/completions"
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = None
    leaves: bool = False
    stays: float = 0.0

    @property
    def malformed(self) -> bool:
        """Whether it is no HTTP, which is refused before anything looks at its path."""
        names = [name for name, _ in self.headers]
        own = {
            "Content-Length",
            "Transfer-Encoding",
            "Host",
            "X-Long",
            "Connection",
            "Upgrade",
            "Authorization",
        }
        return self.length is not None or bool(own & {*names}) or not self.path.isascii() or " " in self.path


def request(random: Random) -> Sent:
    """One of them."""
    route = random.choice([*SOUND])
    body: Any = deepcopy(random.choice(SOUND[route]))
    for _ in range(random.choice((0, 1, 1, 2))):
        change(body, random)
    for _ in range(random.choice((0, 0, 1))):
        body[random.choice(NAMES)] = random.choice((odd_value(random, None), 10**400, -(10**400), 2**63, -1))
    sent = Sent(path=route, body=json.dumps(body).encode(errors="surrogatepass"))
    if random.random() < 0.2:
        sent.body = changed_bytes(sent.body, random)
    if random.random() < 0.15:
        changed_head(sent, random)
    if random.random() < 0.05:
        sent.leaves, sent.stays = True, random.random() ** 4
    return sent


def changed_bytes(body: bytes, random: Random) -> bytes:
    at, to = sorted(random.randrange(len(body) + 1) for _ in range(2))
    return random.choice(
        [
            body[:at], body[:at] + body[to:], body + body, body[:at] + random.randbytes(3) + body[at:], b"",
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"), b"[" * 50_000, b'{"messages":' * 2000, body[:at] + b"9" * 5000 + body[at:],
            b'{"max_tokens": 1' + b"0" * 400 + b', "prompt": "x"}', b'{"temperature": 1' + b"0" * 400 + b', "prompt": "x"}',
            body[:at] + b"\\ud800" + body[at:], body.replace(b"1", b"1e999"), body.replace(b"2", b"-0.0"), b"null", b'"x"', b"[]",
        ]
    )  # fmt: skip


def changed_head(sent: Sent, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        sent.method = random.choice(METHODS)
        sent.path = random.choice(PATHS)
    elif kind == 1:
        odd = ("/", "//", "?a=b", "/../", "%00", "%ff", "x" * 9000, "#x", ";x", " ", "é")
        sent.path += random.choice(odd)
    elif kind == 2:
        sent.headers += random.choices(HEADERS, k=random.choice((1, 1, 2, 3)))
    else:
        sent.length = random.choice((0, 1, len(sent.body) // 2, len(sent.body) + 7, 2**40, 2**70))
        sent.leaves = sent.length > len(sent.body)


def answer(address: tuple[str, int], sent: Sent) -> str:
    """What becomes of it: "answered", "refused", "no HTTP", "left", or else the failure."""
    names = {name for name, _ in sent.headers}
    head = [f"{sent.method} {sent.path} HTTP/1.1"]
    head += [] if "Host" in names else [f"Host: {address[0]}:{address[1]}"]
    if not names & {"Content-Length", "Transfer-Encoding"}:
        head += [f"Content-Length: {len(sent.body) if sent.length is None else sent.length}"]
    head += [f"{name}: {value}" for name, value in sent.headers] + ["Connection: close", "", ""]
    with socket.create_connection(address, SECONDS) as connection:
        try:
            connection.sendall("\r\n".join(head).encode("latin-1") + sent.body)
            if sent.malformed or sent.length is not None:
                connection.shutdown(socket.SHUT_WR)  # or the server would wait for the rest
            if sent.leaves:
                left_at(connection, sent.stays)
                return "left"
            found = http.client.HTTPResponse(connection, method=sent.method)
            found.begin()
            return judged(sent, found, found.read())
        except (ConnectionError, http.client.HTTPException) as error:
            return "no HTTP" if sent.malformed or sent.leaves else f"no answer: {error!r}"
        except TimeoutError:
            return f"no answer within {SECONDS} s"


def left_at(connection: socket.socket, seconds: float) -> None:
    """Read for so long, or to the end."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            if not connection.recv(2**16):
                return
        except TimeoutError:
            return


def judged(sent: Sent, found: http.client.HTTPResponse, body: bytes) -> str:
    if found.status >= 500:
        return f"status {found.status}: {body[:300]!r}"
    if found.status < 400:
        if b'"server_error"' in body or b'"api_error"' in body:
            return f"a failure in a stream: {body[-300:]!r}"
        return "answered"
    if sent.method == "HEAD":
        return "refused"
    try:
        told = json.loads(body)
        error = told["error"]
        sound = (
            isinstance(error["message"], str) and bool(error["message"]) and isinstance(error["type"], str)
        )
        if sent.path.startswith("/v1/messages"):
            sound = sound and told["type"] == "error"
        return "refused" if sound else f"an error of another form: {body[:300]!r}"
    except (ValueError, KeyError, TypeError):
        return "no HTTP" if sent.malformed else f"an error of another form: {found.status} {body[:300]!r}"


@contextmanager
def served() -> Iterator[tuple[tuple[str, int], Service]]:
    """The bundled model, whose answers have few tokens unless more are asked for."""
    options = ServeOptions(port=0)
    host = Serving(options)
    server = Server(make_app(host), options)
    server.start()
    with dali.load() as llm:
        llm.defaults = {**llm.defaults, "max_tokens": 4}
        service = Service(llm, options.parallel, options.queue)
        host.open(service)
        name, port = server.url.removeprefix("http://").split(":")
        yield (name, int(port)), service
        service.stop(0)
        server.stop()


def one(address: tuple[str, int], seed: int, number: int) -> tuple[Sent, str]:
    sent = request(Random(f"{seed} {number}"))
    return sent, answer(address, sent)


def run(address: tuple[str, int], service: Service, inputs: int, seed: int) -> dict[str, Any]:
    """What becomes of `inputs` requests; prints failures as they come."""
    counts = Counter(dict.fromkeys((*OUTCOMES, "failed"), 0))
    with ThreadPoolExecutor(CLIENTS) as clients:
        for number, (sent, found) in enumerate(clients.map(partial(one, address, seed), range(inputs))):
            if found not in counts:
                print(f"input {number} of seed {seed}: {sent!r:.600}\n  {found}", flush=True)
                found = "failed"
            counts[found] += 1
    end = time.monotonic() + SECONDS
    while (service.running or service.waiting) and time.monotonic() < end:
        time.sleep(0.01)
    sound = Sent(body=json.dumps(SOUND["/v1/chat/completions"][0]).encode())
    counts["left under way"] = service.running + service.waiting
    counts["failed"] += answer(address, sound) != "answered"
    return {"inputs": inputs} | counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import report

    logging.basicConfig(level=logging.ERROR)
    with served() as (address, service):
        rows = [run(address, service, options.inputs, options.seed)]
    report.table(rows)
    report.write("fuzz_serve", rows, seed=options.seed, seconds_allowed=SECONDS)
    raise SystemExit(any(row["failed"] or row["left under way"] for row in rows))


if __name__ == "__main__":
    main()
