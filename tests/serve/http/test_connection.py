"""Clients that keep a connection waiting."""

from __future__ import annotations

import json
import socket

import pytest

from dali.serve.http import connection
from served import STORY, Served, served, until


def connect(to: Served, receive: int | None = None) -> socket.socket:
    plug = socket.socket()
    if receive is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    plug.settimeout(10)
    host, port = to.url.removeprefix("http://").split(":")
    plug.connect((host, int(port)))
    return plug


def is_cut(plug: socket.socket) -> bool:
    """Whether the server ends the connection without an answer."""
    try:
        return plug.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: local"])
def test_headers_that_do_not_come(tiny, monkeypatch, said):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
    with connect(tiny) as plug:
        plug.sendall(said)
        assert is_cut(plug)


def test_headers_of_a_second_request_that_do_not_come(tiny, monkeypatch):
    with connect(tiny) as plug:
        plug.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not plug.recv(4096).endswith(b'{"status":"ok"}'):
            pass
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.05)
        plug.sendall(b"GET /health HT")
        assert is_cut(plug)


def test_a_stream_that_is_not_read(tiny_llm, monkeypatch):
    """What the server's and the client's systems hold between them is small here, so that few chunks fill it."""
    monkeypatch.setattr(connection, "READ_SECONDS", 0.1)
    created = socket.create_server

    def narrow(*arguments, **named):
        listening = created(*arguments, **named)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listening

    monkeypatch.setattr(socket, "create_server", narrow)
    body = {
        "messages": STORY,
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
    with served(tiny_llm) as found, connect(found, 4096) as plug:
        content = json.dumps(body).encode()
        plug.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            % len(content)
        )
        plug.sendall(content)
        until(lambda: found.service.running == 1)
        until(lambda: found.service.running == 0)
        read = b"".join(iter(lambda: plug.recv(2**16), b""))
    assert read.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in read


def test_headers_have_a_limit(tiny):
    with connect(tiny) as plug:
        plug.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert plug.recv(4096).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x00\xa5\x01", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\nHELLO\r\n\r\n"]
)
def test_what_is_no_http_is_refused(tiny, nonsense):
    with connect(tiny) as plug:
        plug.sendall(nonsense)
        plug.shutdown(socket.SHUT_WR)
        assert not plug.recv(4096).startswith(b"HTTP/1.1 5")
