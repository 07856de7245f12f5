"""An app below a path of another one: who may ask, and in which form errors come, as at the root."""

from __future__ import annotations

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Match, Mount, Route

from dali.serve.app import make_app
from dali.serve.http.path import own_path
from dali.serve.options import ServeOptions
from dali.serve.server import Server
from dali.serve.serving import Serving


@pytest.fixture(scope="module")
def http():
    """The app, with a key and no model yet, below /a/b."""
    options = ServeOptions(port=0, api_key="k")
    outer = Starlette(routes=[Mount("/a", routes=[Mount("/b", app=make_app(Serving(options)))])])
    server = Server(outer, options)
    server.start()
    with httpx2.Client(base_url=f"{server.url}/a/b") as client:
        yield client
    server.stop()


def test_what_is_open_is_open_there(http):
    assert http.get("/health").status_code == 503  # loading, not 401
    assert http.get("/").status_code == 200
    assert http.get("/page/page.css").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/health", "/health/"])
def test_all_else_needs_the_key(http, path):
    assert http.get(path).status_code == 401


def test_errors_have_the_form_of_their_protocol(http):
    assert http.post("/v1/messages", json={}).json()["type"] == "error"
    key = {"Authorization": "Bearer k"}
    assert http.post("/v1/messages", json={}, headers=key).json()["error"]["type"] == "overloaded_error"
    answer = http.get("/nothing", headers=key)
    assert answer.json()["error"]["message"].startswith("There is no GET /nothing here.")


@pytest.mark.parametrize("path", ["/x", "/p/x", "/p", "/p/", "/px", "/p//x", "/p/p/x", "/"])
@pytest.mark.parametrize("root", ["", "/p", "/p/p", "/p/", "/"])
def test_it_is_the_path_that_starlette_routes_by(path, root):
    route = Route("/{rest:path}", lambda request: None)
    scope = {"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}
    match, found = route.matches(scope)
    routed = f"/{found['path_params']['rest']}" if match is Match.FULL else ""
    assert own_path(scope) == routed
