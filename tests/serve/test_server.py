"""Listening."""

from __future__ import annotations

import socket
import threading

import httpx2
import pytest

from dali.errors import DaliError
from dali.serve.app import make_app
from dali.serve.options import ServeOptions
from dali.serve.server import Server, listen
from dali.serve.serving import Serving


def has(address: str) -> bool:
    try:
        socket.create_server((address, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_it_is_reached_by_its_url_until_it_is_stopped(host):
    if host == "::1" and not has(host):
        pytest.skip("There is no IPv6 here.")
    options, ended = ServeOptions(host=host, port=0), threading.Event()
    server = Server(make_app(Serving(options)), options)
    server.start(ended.set)
    assert httpx2.get(f"{server.url}/health").status_code == 503
    assert host != "localhost" or "127.0.0.1" in server.url
    assert not ended.is_set()
    url = server.url
    server.stop()
    assert ended.is_set()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def test_a_port_in_use_and_a_foreign_address_are_told():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DaliError, match=f"Port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()  # at once again, whoever asked there last
    with pytest.raises(DaliError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
