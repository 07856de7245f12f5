"""A file imports only from its own floor and those below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "dali"
FLOORS = [
    "cli",
    "measure",
    "entry",
    "llm",
    "replay",
    "offload",
    "engine",
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
        assert not names & {"torch", "time", "random.random"}, "policies are pure"
    if path.name != "cuda.py":
        assert not any(name.startswith("torch.cuda") for name in names)
