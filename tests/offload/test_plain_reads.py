"""Experts on disk that are read through the page cache, as that was measured to be faster, until steps tell otherwise."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

import dali
from dali.cli.chat.answer import Answer
from dali.hardware import own
from dali.kernels import native
from dali.store.direct_io import PAGE
from dali.store.disk_pool import DiskPool
from families import random_model, save_model
from measured import MACHINE, measured
from on_disk import load_on_disk
from page_cache import cached, forget

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not native.AVAILABLE, reason="the kernels and what Linux counts are needed"
)
ASKED: Any = {"max_tokens": 90, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    own.write(measured(plain_bandwidth=4.5e9, plain_queue_depth=3.0, disk_queue_depth=4.0))
    return save_model(random_model("olmoe"), tmp_path / "model")


def read_in(monkeypatch: pytest.MonkeyPatch, plain: float, past: float) -> None:
    """Have each read of an expert seem to take so many seconds, through the page cache and past it."""
    real = DiskPool.decoded

    def decoded(pool: DiskPool) -> tuple[float, float, int] | None:
        if (told := real(pool)) is None:
            return None
        counted = pool.counters()
        waited = plain * counted.plain_reads + past * (counted.reads - counted.plain_reads)
        return waited + told[2], waited, told[2]

    monkeypatch.setattr(DiskPool, "decoded", decoded)


@pytest.mark.parametrize("slow", [True, False])
def test_slow_plain_reads_are_left_for_reads_past_the_page_cache(saved, monkeypatch, slow):
    wanted = dali.load(saved, quant="w8").generate([5, 6, 7], **ASKED).tokens
    read_in(monkeypatch, *((3.0, 1.0) if slow else (1.0, 3.0)))
    notes: list[str] = []
    llm = load_on_disk(monkeypatch, saved, 7, quant="w8", notify=notes.append)
    pool = llm.loaded.pool
    assert isinstance(pool, DiskPool)
    assert (pool.direct, pool.depth) == (False, 4)  # the deeper of both
    room, seen = pool.cached_bytes, []
    forget(pool.path)
    answer = Answer(llm, sequence := llm.sequence([5, 6, 7], **ASKED))
    llm.engine.add(sequence)
    while llm.engine.step():
        seen.append(PAGE * len(cached(pool.path, pool.header.file_bytes)))
    assert sequence.generated == wanted
    assert pool.direct == slow
    assert max(seen) <= room == pool.cached_bytes == 4 * pool.slot_bytes
    disk = llm.stats()["disk"]
    assert disk["plainly"] != slow
    assert 0 < disk["plain_reads"] < disk["reads"]  # both were tried
    told = [note for note in notes if "ms with experts read through the page cache and" in note]
    assert len(told) == slow
    assert all(note.endswith("from here on they are read past it.") for note in told)
    assert ("read through the page cache" in answer.summary()) != slow
    assert re.search(r" reads at a time, \d+ % of them through the page cache, ", answer.summary(long=True))


def test_where_experts_are_read_past_the_page_cache_nothing_else_is_tried(saved, monkeypatch):
    own.write(measured(plain_bandwidth=3.1e9, plain_queue_depth=3.0))
    read_in(monkeypatch, 1.0, 3.0)
    llm = load_on_disk(monkeypatch, saved, 7, quant="w8")
    llm.generate([5, 6, 7], **ASKED)
    disk = llm.stats()["disk"]
    assert (disk["plain_reads"], disk["plainly"]) == (0, False)
    assert llm.loaded.pool.cached_bytes == 0
