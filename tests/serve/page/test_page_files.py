"""What a browser gets at / and below /page/."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from dali.serve.app import make_app
from dali.serve.options import ServeOptions
from dali.serve.page.files import FILES, PATHS
from dali.serve.serving import Serving
from served import served

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def loading():
    """A server that has a key and no model yet."""
    with TestClient(make_app(Serving(ServeOptions(api_key="key"))), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_each_file_comes_without_a_key_or_a_model_and_says_what_may_run(loading, path):
    answer = loading.get(path)
    assert answer.status_code == 200
    wanted = TYPES.get(path.rpartition(".")[2], "text/html")
    assert answer.headers["content-type"].split(";")[0] == wanted
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"


def test_what_the_page_asks_for_needs_the_key(loading):
    for path in ("/v1/stats", "/metrics", "/v1/models"):
        assert loading.get(path).status_code == 401


@pytest.mark.parametrize(
    "name", ["other.js", "index.html", "files.py", "..%2Ffiles.py", "%2e%2e/files.py", "", "a/b", "%00"]
)
def test_nothing_else_lies_there(tiny, name):
    assert tiny.http.get(f"/page/{name}").status_code == 404


def test_a_foreign_name_gets_no_page_where_there_is_no_key(tiny):
    assert tiny.http.get("/", headers={"Host": "example.org"}).status_code == 403


def test_every_address_is_relative_and_there():
    """So that the page works offline, and below a prefix that a proxy takes away."""
    texts = {
        name: Path(path).read_text(encoding="utf-8") for name, path in FILES.items() if name != "icon.svg"
    }
    for text in texts.values():
        assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"//.*", "", text))
    asked = re.findall(r'(?:href|src)="([^"#]+)"', texts["index.html"])
    asked += [f"page/{name}" for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{path}" for path in asked} == set(PATHS) - {"/"}
    fetched = [path for text in texts.values() for path in re.findall(r'(?:fetch|ask)\("([^"]+)"', text)]
    assert sorted(fetched) == ["v1/chat/completions", "v1/models", "v1/stats"]


def test_with_a_key_the_page_is_there_for_other_machines(tiny_llm):
    with served(tiny_llm, api_key="key") as locked, httpx2.Client(base_url=locked.url) as http:
        assert http.get("/", headers={"Host": "example.org"}).status_code == 200
        stats = http.get("/v1/stats", headers={"Host": "example.org", "Authorization": "Bearer key"})
        assert stats.status_code == 200
