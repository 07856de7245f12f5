"""The arena: aligned, apart, lazily committed, and an error where there is no room."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from dali.errors import DaliError
from dali.store.arena import Arena, populate


def test_records_are_page_aligned_views_that_do_not_overlap():
    arena = Arena(5, 8192)
    assert len(arena) == 5
    assert arena.nbytes == 5 * 8192
    for index in range(5):
        assert arena[index].shape == (8192,)
        assert arena[index].data_ptr() % 4096 == 0
        assert (arena[index] == 0).all()
        arena[index].fill_(index + 1)
    assert [int(arena[index].sum()) for index in range(5)] == [8192 * (index + 1) for index in range(5)]
    with pytest.raises(IndexError):
        arena[5]


def test_by_layer():
    arena = Arena(6, 4096)
    for index in range(6):
        arena[index].fill_(index)
    layers = arena.by_layer(2)
    assert [[int(record[0]) for record in layer] for layer in layers] == [[0, 1, 2], [3, 4, 5]]
    layers[1][0].fill_(9)
    assert int(arena[3][0]) == 9  # views


def test_records_outlive_the_arena():
    record = Arena(2, 4096)[1]
    record.fill_(3)
    assert int(record.sum()) == 3 * 4096


def test_no_records():
    assert len(Arena(0, 4096)) == 0


@pytest.mark.parametrize("count", [2**36, 2**60])
def test_more_than_the_address_space_is_refused(count):
    with pytest.raises(DaliError, match=r"Cannot reserve .* GiB"):
        Arena(count, 4096)


def test_a_kernel_without_huge_pages_is_no_obstacle(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    arena = Arena(1, 4096)
    arena[0].fill_(1)
    assert torch.equal(arena[0], torch.ones(4096, dtype=torch.uint8))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a hint that only Linux takes")
def test_populated_memory_is_there_and_keeps_its_contents():
    arena = Arena(2, 64 << 20)
    arena[0][:4096] = 7
    before = _resident()
    populate(arena[0])
    gained = _resident() - before
    assert gained == 0 or gained > 48 << 20  # nothing where the kernel is older than 5.14
    assert (arena[0][:4096] == 7).all()
    assert (arena[0][4096:] == 0).all()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
