"""Building a store: once, whole or not at all, by one process at a time, with clear errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import shutil
import subprocess
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from dali.errors import DaliError
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS
from dali.store.packed.builder import ensure_store
from dali.store.packed.reader import StoreReader
from tiny_stores import SHAPE, RandomExperts, build_and_hang, build_slowly, expected_record, header, silent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stores" / "tiny" / "w8.safetensors"


@pytest.fixture
def disk(tmp_path):
    """A file system of 96 KiB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_whole(path, described=None) -> None:
    described = described or header()
    with StoreReader(path) as reader:
        assert reader.header == described
        arena = reader.read_all()
    for index in range(described.records):
        assert torch.equal(arena[index], expected_record(*divmod(index, 3), described.layout))


def leftovers(path) -> list[str]:
    """Everything in the store's folder but its lock."""
    return sorted(set(os.listdir(path.parent)) - {f"{path.name}.lock"})


def test_a_store_is_built_once(path):
    source, told, starts = RandomExperts(), [], []

    def progress():
        starts.append(True)
        return told.append

    assert ensure_store(path, header(), source, progress) is True
    assert source.reads == [(layer, expert) for layer in range(2) for expert in range(3)]
    assert sum(told) == 6 * header().record_bytes
    assert ensure_store(path, header(), source, progress) is False
    assert len(source.reads) == 6
    assert len(starts) == 1
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_a_build_is_the_same_file_each_time(path):
    ensure_store(path, header(), RandomExperts(), silent)
    first = path.read_bytes()
    path.unlink()
    ensure_store(path, header(), RandomExperts(), silent)
    assert path.read_bytes() == first
    assert len(first) == header().file_bytes


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "f2"}, {"model": "other"}, {"layers": 1}, {"layers": 3}], ids=lambda c: min(c)
)
def test_another_source_is_built_anew(path, changes):
    ensure_store(path, header(), RandomExperts(), silent)
    assert ensure_store(path, header(**changes), RandomExperts(), silent) is True
    assert_whole(path, header(**changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:5000],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * len(content),
        lambda content: b"GGUF" + content,
        lambda content: content.replace(b'"dali_store": "1"', b'"dali_store": "0"'),
        lambda content: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
    ids=["empty", "cut", "half-written", "a byte short", "a byte long", "garbage", "gguf", "version", "deep"],
)
def test_what_is_no_store_is_built_anew(path, damage):
    ensure_store(path, header(), RandomExperts(), silent)
    path.write_bytes(damage(path.read_bytes()))
    assert ensure_store(path, header(), RandomExperts(), silent) is True
    assert_whole(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DaliError("It broke.", "Mend it."), MemoryError])
@pytest.mark.parametrize("at", [(0, 0), (1, 1), (1, 2)])
def test_an_interrupted_build_is_gone_on_with(path, error, at):
    """What is written at the interruption is not packed again; of nothing, nothing is left."""

    def interrupt(layer: int, expert: int) -> None:
        if (layer, expert) == at:
            raise error

    with pytest.raises(error if isinstance(error, type) else DaliError):
        ensure_store(path, header(), RandomExperts(interrupt), silent)
    part = path.with_name(f"{path.name}.part")
    assert not path.exists()
    assert part.exists() == (at != (0, 0))
    again, told, notes = RandomExperts(), [], []
    assert (
        ensure_store(path, header(), again, lambda: told.append, notes.append) is True
    )  # nor is the lock held
    begun = header().records - len(again.reads)
    assert at == (0, 0) or 0 < begun < header().records
    assert again.reads == [divmod(index, 3) for index in range(begun, header().records)]
    assert sum(told) == header().nbytes
    assert [note[:19] for note in notes] == ["Packing goes on at "] * (begun > 0)
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_ctrl_c_in_the_progress_bar_leaves_what_was_written(path):
    def progress(nbytes: int) -> None:
        raise KeyboardInterrupt

    for _ in range(header().records):
        with pytest.raises(KeyboardInterrupt):
            ensure_store(path, header(), RandomExperts(), lambda: progress)
    again = RandomExperts()
    assert ensure_store(path, header(), again, silent) is True
    assert_whole(path)


def test_a_weight_the_format_cannot_hold_names_its_expert(path):
    class Damaged(RandomExperts):
        def read(self, layer: int, expert: int):
            weights = super().read(layer, expert)
            return replace(weights, up=weights.up * float("nan")) if (layer, expert) == (1, 0) else weights

    with pytest.raises(DaliError, match="Expert 0 of MoE layer 1: A weight is NaN or infinite"):
        ensure_store(path, header(), Damaged(), silent)
    assert not path.exists()


def test_a_stale_temporary_file_is_removed(path):
    path.parent.mkdir(parents=True)
    (path.parent / f"{path.name}.12345.tmp").write_bytes(b"x" * 1000)
    (path.parent / "w4.safetensors.12345.tmp").write_bytes(b"another format's, maybe being built")
    ensure_store(path, header(), RandomExperts(), silent)
    assert leftovers(path) == ["w4.safetensors.12345.tmp", path.name]


def test_no_space_at_the_start(path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 5000, 5000))
    source = RandomExperts()
    with pytest.raises(DaliError, match=r"needs 0 MiB in .*where 0 MiB are free.\nFree some space") as full:
        ensure_store(path, header(), source, silent)
    assert "a smaller format (quant w4)" in full.value.fix
    smallest = header(layout=ExpertLayout(SHAPE, FORMATS["w4"]))
    with pytest.raises(DaliError, match="The expert store needs") as full:
        ensure_store(path, smallest, source, silent)
    assert "smaller" not in full.value.fix
    assert source.reads == []
    assert leftovers(path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_when_the_disk_is_synced(path, monkeypatch, code):
    def full(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DaliError, match="The expert store needs"):
            ensure_store(path, header(), RandomExperts(), silent)
    assert not path.exists()
    assert ensure_store(path, header(), RandomExperts(), silent) is True
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_a_full_disk(disk):
    path = disk / "stores" / "w8.safetensors"
    (disk / "other").write_bytes(b"x" * 60_000)
    with pytest.raises(DaliError, match="The expert store needs"):
        ensure_store(path, header(), RandomExperts(), silent)
    assert leftovers(path) == []
    (disk / "other").unlink()
    assert ensure_store(path, header(), RandomExperts(), silent) is True
    assert_whole(path)


def test_a_disk_that_fills_during_the_build(disk):
    path = disk / "stores" / "w8.safetensors"

    def fill(layer: int, expert: int) -> None:
        if (layer, expert) == (1, 2):
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)

    for source in (RandomExperts(fill), RandomExperts()):  # which finds no more space either
        with pytest.raises(DaliError, match=r"The expert store needs 0 MiB more, to go on .* 0 MiB are free"):
            ensure_store(path, header(), source, silent)
    (disk / "other").unlink()
    assert ensure_store(path, header(), source, silent) is True
    assert 0 < len(source.reads) < header().records
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_an_outdated_store_makes_room_for_its_successor(disk):
    path = disk / "w8.safetensors"
    ensure_store(path, header(), RandomExperts(), silent)
    assert shutil.disk_usage(disk).free < header().file_bytes
    assert ensure_store(path, header(fingerprint="f2"), RandomExperts(), silent) is True
    assert_whole(path, header(fingerprint="f2"))


def test_a_read_only_cache_serves_what_it_has(disk):
    path, missing = disk / "w8.safetensors", disk / "w4.safetensors"
    ensure_store(path, header(), RandomExperts(), silent)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert ensure_store(path, header(), RandomExperts(), silent) is False
    with pytest.raises(
        DaliError, match=r"Cannot write to the cache folder .*Read-only file system.*\n.*DALI_CACHE_DIR"
    ):
        ensure_store(missing, header(), RandomExperts(), silent)
    with pytest.raises(DaliError, match="Cannot write to the cache folder"):
        ensure_store(path, header(fingerprint="f2"), RandomExperts(), silent)


def test_a_file_where_the_cache_folder_should_be(tmp_path):
    (tmp_path / "stores").write_text("not a folder")
    for path in (tmp_path / "stores" / "w8", tmp_path / "stores" / "tiny" / "w8"):
        with pytest.raises(DaliError, match=r"Cannot write to the cache folder .*stores"):
            ensure_store(path, header(), RandomExperts(), silent)


def test_a_folder_where_the_store_should_be(path):
    path.mkdir(parents=True)
    with pytest.raises(DaliError, match=r"Cannot write the expert store .*w8.safetensors \(Is a directory\)"):
        ensure_store(path, header(), RandomExperts(), silent)


def test_who_waits_for_another_build_says_so(path):
    path.parent.mkdir(parents=True)
    notices: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as pool, FileLock(f"{path}.lock") as lock:
        waiting = pool.submit(ensure_store, path, header(), RandomExperts(), silent, notices.put)
        assert "Another process" in notices.get(timeout=60)
        assert not waiting.done()
        lock.release()
        assert waiting.result(timeout=60) is True
    assert_whole(path)


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks(path, monkeypatch, recwarn, error):
    def refuse(*arguments: object) -> None:
        raise OSError(getattr(errno, error), "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    path.parent.mkdir(parents=True)
    of_another = path.with_name(f"{path.name}.0123.tmp")
    of_another.touch()
    notes: list[str] = []
    assert ensure_store(path, header(), RandomExperts(), silent, notes.append) is True
    assert notes == [
        f"The file system of {path.parent} has no locks: let one process at a time pack the experts."
    ]
    assert of_another.exists()
    assert not recwarn
    of_another.unlink()
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_two_processes_build_one_store(path):
    """Both start with nothing: one builds, the other waits, says so, and finds it built."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=build_slowly, args=(path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    told = []
    while sum(kind == "built" for kind, _ in told) < 2:
        told.append(results.get(timeout=120))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(value for kind, value in told if kind == "built") == [False, True]
    assert leftovers(path) == [path.name]
    assert_whole(path)


def test_a_killed_build_holds_nobody_up(path):
    spawn = multiprocessing.get_context("spawn")
    reached = spawn.Event()
    process = spawn.Process(target=build_and_hang, args=(path, reached))
    process.start()
    assert reached.wait(timeout=120)
    process.kill()
    process.join()
    assert leftovers(path) == [f"{path.name}.part", f"{path.name}.part.sums"]
    assert ensure_store(path, header(), RandomExperts(), silent) is True
    assert leftovers(path) == [path.name]
    assert_whole(path)
