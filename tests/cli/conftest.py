"""Every test of the command line has its own caches, and no settings of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

import dali
from dali.cli.main import main

STORY = "Tell me a story about a little dog."

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the shipped model is packed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def story(cache: Path) -> str:
    """What the shipped model says to STORY at temperature 0: the oracle of what `run` shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(cache))
        return dali.load().chat([{"role": "user", "content": STORY}], temperature=0).text


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("DALI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DALI_CACHE_DIR", str(cache))
    monkeypatch.setenv("DALI_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., tuple[int, str, str]]:
    """Run a command line that fails as dali words it: (exit code, what is wrong, what to do)."""

    def refused(*arguments: str) -> tuple[int, str, str]:
        code, out, err = run(*arguments)
        assert out == ""
        problem, fix = err.splitlines()
        assert problem.startswith("error: ")
        assert all(sentence.endswith((".", "`")) for sentence in (problem, fix))
        return code, problem.removeprefix("error: "), fix

    return refused
