"""Listening, from before the model is there until all answers have ended."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn
from starlette.types import ASGIApp

from dali.errors import DaliError, parameter
from dali.serve.http.connection import Connection
from dali.serve.options import ServeOptions

KEEP_ALIVE = 60  # seconds that an idle connection is kept
MOST_HEADERS = 2**15  # bytes
BACKLOG = 512


class _Server(uvicorn.Server):
    """uvicorn's, in a thread that gets no signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves `app` where `options` say, in a thread of its own. DaliError, from the constructor: it cannot listen there."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._socket = listen(options.host, options.port)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http=Connection,
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=MOST_HEADERS,
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        self._thread = Thread(target=self._run, name="dali-http", daemon=True)
        self._ended: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self, ended: Callable[[], None] = lambda: None) -> None:
        """ended: called when it serves no longer, whatever the reason."""
        self._ended = ended
        self._thread.start()

    def stop(self, at_once: bool = False) -> None:
        """Close all connections; those on which something is being sent have a few seconds, unless it is to be `at_once`."""
        self._server.force_exit = at_once
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._socket.close()
            self._ended()


def listen(host: str, port: int) -> socket.socket:
    """A socket there. DaliError: another program has the port, or this machine no such address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of a name with both kinds, the address that programs try when they are told 127.0.0.1.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DaliError(
                f"Port {port} of {host} is in use by another program.",
                f"Stop that, or choose another with {parameter('port')} (0: any that is free).",
            ) from error
        raise DaliError(
            f"The server cannot listen on {host} port {port} ({error.strerror or error}).",
            f"Give an address of this machine as {parameter('host')}, and a {parameter('port')} above 1023.",
        ) from error
