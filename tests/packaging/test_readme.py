"""README.md on an index page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "setup"))
import readme

ROOT = Path(__file__).resolve().parents[2]
TARGET = re.compile(r"\]\(([^)]*)\)")


def test_without_a_repository_relative_links_are_their_words():
    text = "![run](docs/run.svg) See [docs/A.md](docs/A.md), [a paper](https://arxiv.org/abs/2602.03495) and [below](#below)."
    assert readme.index_page(text, None) == (
        "run See docs/A.md, [a paper](https://arxiv.org/abs/2602.03495) and [below](#below)."
    )


def test_with_one_they_lead_there():
    text = "![run](docs/run.svg) See [docs/A.md](docs/A.md)."
    assert readme.index_page(text, "https://example.org/dali/") == (
        "![run](https://example.org/dali/raw/main/docs/run.svg) See [docs/A.md](https://example.org/dali/blob/main/docs/A.md)."
    )


@pytest.mark.parametrize("repository", [None, "https://example.org/dali"])
def test_no_link_of_the_page_is_relative(repository):
    page = readme.dynamic_metadata({}, {"urls": {"Repository": repository}})["readme"]["text"]
    assert all(target.startswith(("https://", "#")) for target in TARGET.findall(page))


def test_every_relative_link_of_the_file_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for _, _, target in readme.RELATIVE.findall(text)]
    assert targets
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []
