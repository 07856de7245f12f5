"""The page on serving names what the server has."""

from __future__ import annotations

import re
from pathlib import Path

from dali.serve.app import ROUTES
from dali.serve.openai.messages import ROLES
from dali.serve.options import PARALLEL, QUEUE

PAGE = (Path(__file__).parents[2] / "docs" / "SERVING.md").read_text("utf-8")


def test_every_route_is_there():
    table = PAGE.partition("## Routes")[2].partition("## ")[0]
    told = set(re.findall(r"`(?:GET |POST )?(/[\w/-]*)`", table))
    has = {re.sub(r"\{.*", "NAME", route.path) for route in ROUTES}
    assert told <= has
    assert all(path in told or f"/v1{path}" in told or path.removeprefix("/v1") in told for path in has)


def test_its_figures_are_the_codes():
    assert f"`--parallel` answers ({PARALLEL})" in PAGE
    assert f"`--queue` more ({QUEUE})" in PAGE
    assert all(f"`{role}`" in PAGE for role in ROLES if role != "function")
