"""One server for all tests that need none of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dali
from calling_model import calling_model
from served import Served, served


@pytest.fixture(scope="session")
def tiny_llm(dali_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dali.LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with dali.load(str(dali_tiny)) as llm:
            yield llm


@pytest.fixture(scope="session")
def tiny(tiny_llm: dali.LLM) -> Iterator[Served]:
    with served(tiny_llm) as found:
        yield found


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with calling_model(tmp_path_factory.mktemp("caller")) as found:
        yield found


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
