"""The documents for people: what they name exists, and what they list is what the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from test_architecture import FLOORS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
FOLDERS = ("src/", "tests/", "docs/", "benchmarks/", "recipes/", "examples/", ".ci/")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def named(page: Path) -> list[str]:
    """Paths that the page names in code quotes: files of this repository, or of src/dali where a floor comes first."""
    quoted = re.findall(r"`([\w./*-]+)`", prose(page))
    floors = tuple(f"{floor}/" for floor in FLOORS)
    return [path for path in quoted if path.startswith(FOLDERS + floors)]


def exists(path: str) -> bool:
    return any(any(base.glob(path.rstrip("/"))) for base in (ROOT, ROOT / "src" / "dali"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_named_paths_exist(page):
    assert [path for path in named(page) if not exists(path)] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
def test_pages_name_paths(name):
    assert named(ROOT / name) or name == "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_their_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, (
                target
            )


def test_the_table_of_floors_is_the_tests_list():
    table = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8").partition("| floor | holds |")[2]
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \| .+ \|$", table.partition("\n\n")[0], re.MULTILINE)
    assert rows == FLOORS


def test_the_readme_is_short():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 100
    text = [line for line in prose(README).splitlines() if not line.startswith(("    ", "|", "#", "!"))]
    assert len(" ".join(text).split()) <= 420


def test_the_readmes_table_of_pcs_is_what_was_computed():
    rows = json.loads((ROOT / "benchmarks" / "results" / "fits.json").read_text("utf-8"))["rows"]
    computed = {(row["model"], row["experts"]): row for row in rows}
    table = README.read_text("utf-8").partition("## My PC")[2].partition("\n## ")[0]
    shown = re.findall(
        r"^\| ([\w.-]+) \| (\w+)[^|]* \| (\d+) GiB[^|]* \| ([^|]*) \| ([^|]*) \|$", table, re.MULTILINE
    )
    assert len(shown) >= 5
    for model, experts, memory, *speeds in shown:
        row = computed[model, experts]
        assert int(memory) == row["pc_gib"]
        for kind, speed in zip(("ddr4_3200", "ddr5_5600"), speeds, strict=True):
            expected = row[f"expected_{kind}"]
            assert speed == (f"at most {row[f'bound_{kind}']:.0f}" if expected is None else f"{expected:.0f}")


def test_the_named_commands_of_make_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    told = re.findall(r"`make ([\w-]+)", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert told
    assert set(told) <= set(targets)
