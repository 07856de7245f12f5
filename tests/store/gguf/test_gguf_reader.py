"""Reading in one pass: every row once, streams in file order and between each other, failures."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from dali.errors import DaliError
from dali.store.arena import Arena
from dali.store.gguf import reader as gguf_reader
from dali.store.gguf.blocks import BLOCK_TYPES
from dali.store.gguf.header import GgufTensor
from dali.store.gguf.reader import Job, Reading, read

BYTES = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8)


@pytest.fixture
def tensor(tmp_path):
    """F32 [250, 400], 1600 bytes a row."""
    path = tmp_path / "model.gguf"
    path.write_bytes(BYTES.tobytes())
    return GgufTensor("weight", path, BLOCK_TYPES[0], (250, 400), 0)


def test_every_row_comes_once_whatever_the_order(tensor):
    rows = np.zeros((250, 1600), dtype=np.uint8)
    jobs = [
        Job(
            tensor,
            begin,
            10,
            lambda raw, begin=begin: np.add(rows[begin : begin + 10], raw, rows[begin : begin + 10]),
        )
        for begin in reversed(range(0, 250, 10))
    ]
    told = []
    read([Reading(some, lambda: None) for some in (jobs[:7], jobs[7:], [])], told.append)
    assert np.array_equal(rows.reshape(-1), BYTES)
    assert told == [16000] * 25


def test_streams_in_file_order_and_evenly_between_each_other(tensor, monkeypatch):
    monkeypatch.setattr(gguf_reader, "THREADS", 1)
    done = []
    long = [Job(tensor, begin, 1, lambda raw, begin=begin: done.append(begin)) for begin in (3, 1, 0, 2)]
    short = [Job(tensor, begin, 1, lambda raw, begin=begin: done.append(begin)) for begin in (101, 100)]
    read([Reading(long, lambda: None), Reading(short, lambda: None)], lambda nbytes: None)
    assert done == [0, 100, 1, 2, 101, 3]


def test_a_failure_is_raised(tensor):
    def fail(raw):
        raise DaliError("A weight is NaN.", "Download it again.")

    jobs = [Job(tensor, row, 1, fail if row == 7 else lambda raw: None) for row in range(250)]
    with pytest.raises(DaliError, match="NaN"):
        read([Reading(jobs, lambda: None)], lambda nbytes: None)


def test_rows_beyond_the_end(tensor):
    tensor.path.write_bytes(BYTES[:8000].tobytes())
    with pytest.raises(DaliError, match="ends inside weight"):
        read([Reading([Job(tensor, 3, 10, lambda raw: None)], lambda: None)], lambda nbytes: None)


def test_memory_that_jobs_fill_is_provided_and_a_failure_ends_that_too(tensor):
    arena = Arena(250, 4096)
    records = list(arena)

    def fill(raw, row):
        if row == 200:
            raise DaliError("A weight is NaN.", "Download it again.")
        records[row][:1600] = torch.from_numpy(raw.reshape(-1).copy())

    jobs = [Job(tensor, row, 1, partial(fill, row=row)) for row in range(200)]
    read([Reading(jobs, lambda: None, records)], lambda nbytes: None)
    assert np.array_equal(torch.stack(records)[:200, :1600].numpy().reshape(-1), BYTES[: 200 * 1600])
    with pytest.raises(DaliError, match="NaN"):
        read(
            [Reading([Job(tensor, 200, 1, partial(fill, row=200))], lambda: None, records)],
            lambda nbytes: None,
        )
    assert "dali-memory" not in [thread.name for thread in threading.enumerate()]


def test_a_failure_does_not_wait_for_all_memory_to_be_provided(tensor, monkeypatch):
    asked, began, failed = [], threading.Event(), threading.Event()

    def populate(piece):
        asked.append(piece.nbytes)
        began.set()
        failed.wait(5)
        time.sleep(0.01)

    def fail(raw):
        began.wait(5)
        failed.set()
        raise DaliError("A weight is NaN.", "Download it again.")

    monkeypatch.setattr(gguf_reader, "populate", populate)
    monkeypatch.setattr(gguf_reader, "PROVIDED", 4096)
    with pytest.raises(DaliError, match="NaN"):
        read([Reading([Job(tensor, 0, 1, fail)], lambda: None, [Arena(1, 2**20)[0]])], lambda nbytes: None)
    assert len(asked) < 256
    assert set(asked) == {4096}
