"""Direct reads: every range comes as it is in the file, with and without a page cache, and failures say what was read."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.store.arena import Arena
from dali.store.direct_io import HUGE_PAGE, PAGE, RING, DirectFile, PlainFile, ReadError, Ring
from page_cache import cached, forget

BYTES = np.random.default_rng(0).integers(0, 256, 5 * PAGE + 100, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("io") / "file"
    path.write_bytes(BYTES)
    return path


@pytest.mark.parametrize("unless_cached", [True, False])
@settings(deadline=None)
@given(begin=st.integers(0, len(BYTES)), end=st.integers(0, len(BYTES)))
def test_any_range_is_read(path, unless_cached, begin, end):
    begin, end = sorted((begin, end))
    file = DirectFile(path, unless_cached)
    assert bytes(file.read_range(Ring(), begin, end - begin, "it")) == BYTES[begin:end]
    file.close()


def test_memory_is_filled_piece_by_piece(path, monkeypatch):
    """A read may give less than was asked for."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:PAGE]], at))
    memory = Arena(1, 4 * PAGE)[0].numpy().data
    file = DirectFile(path)
    file.read(memory, PAGE, "it")
    file.close()
    assert bytes(memory) == BYTES[PAGE : 5 * PAGE]


def test_a_range_beyond_the_end(path):
    file = DirectFile(path)
    with pytest.raises(ReadError, match="it ends inside the last row: it has changed since it was opened"):
        file.read_range(Ring(), len(BYTES) - 10, 11, "the last row")
    file.close()


def test_a_disk_that_fails(path, monkeypatch):
    def fail(*given: object) -> int:
        raise OSError(5, "Input/output error")

    file = DirectFile(path)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ReadError, match=r"row 3 cannot be read \(Input/output error\)"):
        file.read_range(Ring(), 0, 10, "row 3")
    file.close()


def test_a_file_system_without_direct_reads(path, monkeypatch):
    plain_open = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return plain_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    file = DirectFile(path)
    assert bytes(file.read_range(Ring(), 5, 1000, "it")) == BYTES[5:1005]
    file.close()


def test_nothing_stays_open(path, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for unless_cached in (True, False):
        DirectFile(path, unless_cached).close()
    with pytest.raises(OSError, match="No such file"):
        DirectFile(tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_file_can_be_opened(tmp_path):
    (tmp_path / "empty").touch()
    DirectFile(tmp_path / "empty", unless_cached=True).close()


def test_a_ring_gives_aligned_memory_and_takes_turns():
    ring = Ring()
    addresses = [
        np.frombuffer(ring.take(size), dtype=np.uint8).ctypes.data for size in (PAGE, 3 * PAGE, HUGE_PAGE + 1)
    ]
    assert all(address % PAGE == 0 for address in addresses)
    assert [address - addresses[0] for address in addresses] == [0, HUGE_PAGE, 2 * HUGE_PAGE]


@pytest.mark.parametrize("size", [RING, RING + 1, 3 * RING])
def test_a_ring_grows_to_what_is_asked_for(size):
    ring = Ring()
    assert len(ring.take(PAGE)) == PAGE
    assert len(ring.take(size)) == size
    assert len(ring.take(size)) == size


@pytest.mark.skipif(sys.platform != "linux", reason="nobody tells here what the page cache has")
def test_a_plain_file_gives_the_same_and_has_the_page_cache_forget_it(path):
    file, memory = PlainFile(path), Arena(1, 4 * PAGE)[0].numpy().data
    file.read(memory, PAGE, "it")
    file.close()
    assert not file.direct
    assert bytes(memory) == BYTES[PAGE : 5 * PAGE]
    forget(path)
    file = PlainFile(path)
    file.read(memory, 0, "it")
    file.close()
    assert not cached(path, len(BYTES))
