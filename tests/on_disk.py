"""Models whose experts RAM is said not to hold, with as many slots for them as a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dali
from dali.llm import LLM
from dali.loading import budget, on_disk
from dali.loading.gguf import model as gguf_model
from dali.loading.room import DoesNotFit
from dali.store.disk_pool import DiskPlan, DiskPool


def load_on_disk(monkeypatch: pytest.MonkeyPatch, path: Path, slots: int, **options: Any) -> LLM:
    """As dali.load. A real budget cannot be so small that a tiny model's experts have no room beside Python."""

    def nothing_fits(candidates: Any, smallest: Any, experts: int, dense_bytes: int, *rest: Any) -> Any:
        error = DoesNotFit("RAM is full.", "Never mind.")
        error.layouts, error.dense_bytes = candidates[0], dense_bytes
        raise error

    with monkeypatch.context() as patch:
        for module in (budget, gguf_model):
            patch.setattr(module, "choose_layouts", nothing_fits)
        patch.setattr(on_disk, "_plan", lambda *given: DiskPlan(2**40, True, slots))
        patch.setattr(DiskPool, "grow", lambda self, slots: None)
        llm = dali.load(path, **options)
    assert isinstance(llm.loaded.pool, DiskPool)
    assert llm.loaded.pool.slots <= slots
    return llm


@contextmanager
def damaged(pool: DiskPool) -> Iterator[None]:
    """The store of `pool`, the file itself and not another of its name, with every record's beginning overwritten meanwhile."""
    good = pool.path.read_bytes()
    with pool.path.open("r+b") as file:
        for index in range(pool.header.records):
            file.seek(pool.header.record_offset(index))
            file.write(b"\xff" * 64)
    yield
    with pool.path.open("r+b") as file:
        file.write(good)
