"""Who may ask: a key, this machine's own names, and pages of no other site."""

from __future__ import annotations

import hmac
import logging
import traceback
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dali.serve.http.errors import ApiError, error_response
from dali.serve.http.path import own_path
from dali.serve.options import ServeOptions, is_loopback

log = logging.getLogger("dali")

OPEN = ("/health",)  # paths that need no key, as the routes have them


class Guard:
    """Stands before the routes. What fails in them without being told is told as 500, and logged without what was asked."""

    def __init__(self, app: ASGIApp, options: ServeOptions, open_paths: Collection[str] = OPEN) -> None:
        self._app = app
        self._options = options
        self._open = open_paths
        self._key = None if options.api_key is None else options.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, watched)
        except ApiError as error:
            await error_response(own_path(scope), error)(scope, receive, watched)
        except Exception as error:
            _log(error)
            if started:
                raise ConnectionAbortedError from None
            failure = ApiError(500, "The server failed; its log says where.", "server_error")
            await error_response(own_path(scope), failure)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._key is not None:
            if own_path(scope) not in self._open and not self._has_key(headers):
                raise ApiError(
                    401,
                    "The API key is missing or wrong. Send the one the server was started with, as "
                    "`Authorization: Bearer KEY`.",
                    "authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ApiError(
                403,
                f"The Host header {host[:80]!r} is none of this machine's own names. Ask for 127.0.0.1 or localhost, or start "
                "the server with an API key.",
                "permission_error",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host:
            raise ApiError(
                403,
                f"Pages of {origin[:80]} may not ask this server, unless it has an API key.",
                "permission_error",
                code="foreign_origin",
            )

    def _has_key(self, headers: Headers) -> bool:
        """Compared in a time that tells nothing of the key."""
        assert self._key is not None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self._key)

    def _is_ours(self, host: str) -> bool:
        """Not so where a name of somebody else's leads here, as in DNS rebinding."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name == self._options.host.lower()


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # it is no address at all
        return None


def _log(error: Exception) -> None:
    """Its place, not its words, which may be a client's."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    log.error("A request failed with an unexpected %s at %s.", type(error).__name__, place)
    log.debug("", exc_info=error)
