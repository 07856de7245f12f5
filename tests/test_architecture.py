"""A file imports only from its own floor and those below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "dali"
FLOORS = [
    "cli",
    "serve",
    "probe",
    "measure",
    "entry",
    "llm",
    "replay",
    "offload",
    "engine",
    "doctor",
    "loading",
    "options",
    "fused",
    "hooks",
    "step",
    "runtime",
    "systems",
    "policies",
    "hardware",
    "store",
    "kernels",
    "devices",
    "telemetry",
    "progress",
    "units",
    "compiled",
    "conversation",
    "errors",
]
ENTRANCES = {"__init__", "__main__"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem not in ENTRANCES)


def floor_of(path: Path) -> str:
    """A folder, or a file that stands beside the folders."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of every import in a file, those inside functions included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


IMPURE = {"torch", "time", "datetime", "random", "secrets", "uuid"}


def impure(names: set[str]) -> set[str]:
    """Of imported names, those of clocks, tensors and unseeded chance; `Random` takes a seed, so it alone may be imported."""
    if "random.Random" in names and not any(name.startswith("random.") for name in names - {"random.Random"}):
        names = names - {"random", "random.Random"}
    return {name for name in names if name.partition(".")[0] in IMPURE or name.startswith("numpy.random")}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import random", {"random"}),
        ("from random import random", {"random", "random.random"}),
        ("from random import Random, choice", {"random", "random.Random", "random.choice"}),
        ("from random import Random", set()),
        ("from time import perf_counter", {"time", "time.perf_counter"}),
        ("import torch.nn", {"torch.nn"}),
        ("import numpy as np", set()),
    ],
)
def test_impurity_is_seen(code, found):
    assert impure(imported(ast.parse(code))) == found


def test_every_folder_is_a_floor():
    assert {floor_of(path) for path in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    own = FLOORS.index(floor_of(path))
    names = imported(ast.parse(path.read_text()))
    floors = {name.split(".")[1] for name in names if name.startswith("dali.")} & set(FLOORS)
    assert all(FLOORS.index(floor) >= own for floor in floors), (
        f"{path.name} imports upwards: {sorted(floors)}"
    )
    if FLOORS[own] in ("systems", "policies"):
        assert not impure(names), "policies are pure"
    if path.name != "cuda.py":
        assert not any(name.startswith("torch.cuda") for name in names)


# How large a room may grow before it asks for another noun. Collections hold one file an item, however many there are.
COLLECTIONS = {"systems", "families"}
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 15, 400, 60
CODE = {".py", ".cpp", ".h", ".cu"}
FOLDERS = sorted({path.parent for path in (SOURCE.parent).rglob("*") if path.suffix in CODE})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SOURCE.parent)))
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    files = [path for path in folder.iterdir() if path.suffix in CODE and path.name != "__init__.py"]
    assert len(files) <= MOST_FILES or folder.name in COLLECTIONS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_holds_one_noun_and_its_functions_fit_a_screen(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > MOST_FUNCTION_LINES]
    assert not long, f"{path.name}: {', '.join(long)} is longer than {MOST_FUNCTION_LINES} lines"


def test_no_two_files_of_tests_have_the_same_name():
    """pytest imports them by their names, and refuses the second one where it collects both."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
