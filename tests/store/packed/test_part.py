"""The part of a store that an interrupted build leaves: gone on with as far as it is right, whatever has become of it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from dali.errors import DaliError
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS
from dali.store.arena import Arena
from dali.store.packed.builder import ensure_store
from dali.store.packed.header import StoreHeader
from dali.store.packed.reader import StoreReader
from tiny_stores import SHAPE, RandomExperts, expected_record, header, killed_builds, silent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w8.safetensors"


def leftovers(path) -> list[str]:
    """Everything in the store's folder but its lock."""
    return sorted(set(os.listdir(path.parent)) - {f"{path.name}.lock"})


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_killed_at_any_byte(path, whole):
    """Processes are killed at bytes of what they write, one after another; each goes on with what there is then."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    process = spawn.Process(target=killed_builds, args=(path, results))
    process.start()
    ends = results.get(timeout=300)
    process.join()
    assert process.exitcode == 0
    assert set(ends[:-2]) == {-signal.SIGXFSZ}
    assert 100 <= ends[-2] < 106  # records packed by the first that wrote all, before it renamed
    assert ends[-1] == 100  # none by the next, which had nothing left to do but that
    assert path.read_bytes() == whole
    assert leftovers(path) == [path.name, f"{path.name}.part.sums"]
    assert ensure_store(path, header(), RandomExperts(), silent) is False


def after(records: int):
    """A progress bar in which somebody presses Ctrl-C after so many."""
    told: list[int] = []

    def advance(nbytes: int) -> None:
        told.append(nbytes)
        if len(told) == records:
            raise KeyboardInterrupt

    return advance


@pytest.fixture
def part(path):
    """A build that was interrupted after four records of six."""

    with pytest.raises(KeyboardInterrupt):
        ensure_store(path, header(), RandomExperts(), partial(after, 4))
    return path.with_name(f"{path.name}.part")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "w8.safetensors"
    ensure_store(path, header(), RandomExperts(), silent)
    return path.read_bytes()


def goes_on(path, part, whole, *contents: bytes) -> int:
    """How many records are packed once the part and its checksums have these contents."""
    source = RandomExperts()
    for name, content in zip((part, f"{part}.sums"), contents, strict=True):
        Path(name).write_bytes(content)
    assert ensure_store(path, header(), source, silent) is True
    assert path.read_bytes() == whole
    assert leftovers(path) == [path.name]
    path.unlink()
    return len(source.reads)


def test_a_part_cut_off_anywhere(path, part, whole):
    records, sums = part.read_bytes(), Path(f"{part}.sums").read_bytes()
    assert goes_on(path, part, whole, records, sums) == 2
    assert goes_on(path, part, whole, records, sums[:17]) == 4
    assert goes_on(path, part, whole, records, b"") == 6
    assert goes_on(path, part, whole, records[:-1], sums) == 3
    assert goes_on(path, part, whole, records + b"further" * 9999, sums + b"bytes") == 2
    chance = random.Random(0)
    for _ in range(15):
        cut = chance.randrange(len(records))
        begun = max((cut - header().record_offset(0)) // header().record_bytes, 0)
        assert goes_on(path, part, whole, records[:cut], sums) == 6 - begun


def test_a_part_with_wrong_bits(path, part, whole):
    records, sums = part.read_bytes(), Path(f"{part}.sums").read_bytes()
    chance, first = random.Random(0), header().record_offset(0)
    for _ in range(15):
        at = chance.randrange(len(records))
        wrong = bytearray(records)
        wrong[at] ^= 1 << chance.randrange(8)
        right = max((at - first) // header().record_bytes, 0)
        assert goes_on(path, part, whole, bytes(wrong), sums) == 6 - right
        at = chance.randrange(32)
        wrong = bytearray(sums)
        wrong[at] ^= 1 << chance.randrange(8)
        assert goes_on(path, part, whole, records, bytes(wrong)) == 6 - at // 8
    zeros = records[:first] + bytes(
        len(records) - first
    )  # a file system that lost power before the data came
    assert goes_on(path, part, whole, zeros, sums) == 6
    assert goes_on(path, part, whole, zeros, bytes(48)) == 6


def test_a_part_of_another_source_is_packed_anew(path, part):
    source, notes = RandomExperts(), []
    assert ensure_store(path, header(fingerprint="f2"), source, silent, notes.append) is True
    assert len(source.reads) == 6
    assert notes == []
    assert leftovers(path) == [path.name]
    ensure_store(path.with_name("expected"), header(fingerprint="f2"), RandomExperts(), silent)
    assert path.read_bytes() == path.with_name("expected").read_bytes()


def test_a_part_is_no_store(path, part):
    with pytest.raises(DaliError), StoreReader(path):
        pass
    with pytest.raises(DaliError), StoreReader(part):
        pass


def test_a_part_whose_layers_differ(path):
    layouts = [ExpertLayout(SHAPE, FORMATS[name]) for name in ("w8", "bf16")]
    mixed = StoreHeader.of("tiny", "f1", layouts, 3)
    for records in range(1, 7):
        with pytest.raises(KeyboardInterrupt):
            ensure_store(path, mixed, RandomExperts(), partial(after, records))
    assert ensure_store(path, mixed, source := RandomExperts(), silent) is True
    assert source.reads == []
    with StoreReader(path) as reader:
        for index in range(6):
            wanted = expected_record(*divmod(index, 3), layouts[index // 3])
            record = Arena(1, len(wanted))[0]
            reader.read(index, record)
            assert torch.equal(record, wanted)
