"""Entries on disk: whatever becomes of the files, what is read is what was written, or nothing."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dali.engine.prefix import folder as module
from dali.engine.prefix.folder import ABANDONED_S, UNFINISHED, Folder, prepare_folder
from dali.engine.prefix.names import BLOCK, PLACE, Names
from dali.errors import DaliError, UsageError
from dali.hooks.recurrent import LinearAttentionState
from dali.step.kept import Kept, KeptState, KeptTokens

TOKENS = [5, 6, 7]


def kept(seed: int = 0, rows: int = 3) -> Kept:
    """Two layers of other sizes, types and windows, one of them with values of no width, and a recurrent one."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, rows, 4, generator=generator)
    latents = torch.randn(1, rows, 5, generator=generator).bfloat16()
    return Kept(
        (KeptTokens(0, None, keys, keys + 1), KeptTokens(3, 7, latents, latents[..., :0])),
        (KeptState(1, LinearAttentionState, torch.randn(3, 3, generator=generator)),),
    )


def name(number: int = 0) -> str:
    names = Names("model", 0)
    names.advance([number])
    return names.name(BLOCK)


def same(one: Kept | None, other: Kept) -> bool:
    assert one is not None
    assert [each[:2] for each in one.tokens] == [each[:2] for each in other.tokens]
    assert [each[:2] for each in one.states] == [each[:2] for each in other.states]
    return all(map(torch.equal, one.tensors, other.tensors))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> Folder:
    return Folder(str(tmp_path), 10**9, said.append)


def put(folder: Folder, number: int = 0, rows: int = 3) -> Path:
    folder.write(name(number), TOKENS, kept(number, rows))
    folder.flush()
    return Path(folder.path) / name(number)


def test_what_was_written_is_read(folder, tmp_path, said):
    put(folder)
    other = Folder(str(tmp_path), 10**9, said.append)  # another process's
    assert same(other.read(name(), TOKENS), kept())
    assert (os.listdir(tmp_path), said) == ([name()], [])


def test_files_are_for_their_owner_alone(folder):
    assert put(folder).stat().st_mode & 0o077 == 0


def test_other_tokens_other_names(folder):
    put(folder)
    assert not folder.has(name(1))
    assert folder.read(name(), [5, 6, 8]) is None  # though the name is that


def test_names_tell_everything_apart():
    found = set()
    for model in ("a", "b"):
        for regime in (0, 1):
            for tokens in ([1], [1, 2], [2, 1], [258]):
                names = Names(model, regime)
                names.advance(tokens)
                found |= {names.name(BLOCK), names.name(PLACE)}
                assert names.name(BLOCK) == names.after(()).name(BLOCK)
                assert names.after([9]).name(PLACE) == names.name(PLACE, [9]) == list(names.places([9, 8]))[1]
    assert len(found) == 2 * 2 * 4 * 2


def test_no_damage_goes_unseen(folder, said):
    path = put(folder)
    whole, draw = path.read_bytes(), random.Random(0)
    damaged = [whole[:cut] for cut in (0, 1, 23, 24, 100, len(whole) // 2, len(whole) - 1)] + [whole + b"\0"]
    for _ in range(200):
        at = draw.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert folder.read(name(), TOKENS) is None
        assert not path.exists()  # so that it is written again
    assert len(said) == 1  # once
    assert "is damaged" in said[0]
    path.write_bytes(whole)
    assert same(folder.read(name(), TOKENS), kept())


def test_a_file_of_another_name_is_no_entry(folder):
    path = put(folder)
    path.rename(path.with_name(name(1)))
    assert folder.read(name(1), TOKENS) is None


def test_all_may_be_deleted_at_any_time(folder, tmp_path, said):
    path = put(folder)
    path.unlink()
    assert folder.read(name(), TOKENS) is None
    assert said == []
    tmp_path.rmdir()
    assert not folder.has(name())
    put(folder, 1)
    assert len(said) == 1
    assert "Nothing can be kept in" in said[0]
    tmp_path.mkdir()
    assert put(folder, 1).exists()


def test_the_least_recently_used_go_first_and_nothing_else(tmp_path, said):
    each = put(Folder(str(tmp_path), 10**9, said.append), 99, rows=50).stat().st_size
    (tmp_path / name(99)).unlink()
    (tmp_path / "letter.txt").write_text("of somebody else")
    folder = Folder(str(tmp_path), 5 * each, said.append)
    for number in range(5):
        os.utime(put(folder, number, rows=50), ns=(number, number))
    assert folder.read(name(0), TOKENS) is not None  # used now
    put(folder, 5, rows=50)
    left = {number for number in range(6) if folder.has(name(number))}
    assert left == {0, 3, 4, 5}  # room for more was made at once
    assert (tmp_path / "letter.txt").exists()
    put(Folder(str(tmp_path), each - 1, said.append), 6, rows=50)  # never fits
    assert not folder.has(name(6))
    assert said == []


def test_two_that_share_a_folder_stay_within_its_size(tmp_path, said):
    each = put(Folder(str(tmp_path), 10**9, said.append), 99, rows=50).stat().st_size
    one, other = (Folder(str(tmp_path), 40 * each, said.append) for _ in range(2))
    for number in range(100):
        put(one, number, rows=50)
        put(other, 100 + number, rows=50)
        total = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert total <= 40 * each * (1 + 2 * module.UNSEEN)
    assert said == []


def test_what_others_left_unfinished_is_ignored_and_later_deleted(folder, tmp_path):
    half = tmp_path / f".{name(7)}.abc{UNFINISHED}"
    old = tmp_path / f".{name(8)}.abc{UNFINISHED}"
    for path in (half, old):
        path.write_bytes(b"half")
    os.utime(old, (1, time.time() - ABANDONED_S - 60))
    assert not folder.has(name(7))
    put(folder)
    assert half.exists()  # perhaps somebody is at it
    assert not old.exists()


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "Permission denied"), (errno.EIO, "error")],
)
def test_what_cannot_be_written_is_lost_and_told_once(folder, tmp_path, said, monkeypatch, number, told):
    put(folder)

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", refuse)
        put(folder, 1)
        put(folder, 2)
    assert os.listdir(tmp_path) == [name()]  # nothing half-written stays
    assert len(said) == 1
    assert told in said[0]
    put(folder, 1)
    assert same(folder.read(name(1), TOKENS), kept(1))


def test_what_cannot_be_read_counts_as_missing(folder, said, monkeypatch):
    put(folder)

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.entry_file, "read", refuse)
    assert folder.read(name(), TOKENS) is None
    assert folder.read(name(), TOKENS) is None
    assert len(said) == 1
    assert "cannot be read (Permission denied)" in said[0]


def test_a_slow_disk_loses_entries_instead_of_memory(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 3 * kept().nbytes)
    with folder._changed:  # for which the writer waits
        for number in range(10):
            folder.write(name(number), TOKENS, kept(number))
        assert len(folder._waiting) == 3
    folder.flush()
    assert sum(folder.has(name(number)) for number in range(10)) == 3


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from test_folder import kept, name, TOKENS
from dali.engine.prefix.folder import Folder
folder = Folder(sys.argv[1], 10**9, print)
print("begun", flush=True)
for number in range(10**6):
    folder.write(name(number), TOKENS, kept(number, rows=2000))
    folder.flush()
"""


def test_who_is_killed_while_writing_leaves_whole_files_or_none(folder, tmp_path, said):
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), here, *sys.path], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        while len(os.listdir(tmp_path)) < 20:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    there = [path for path in tmp_path.iterdir() if not path.name.endswith(UNFINISHED)]
    assert len(there) > 18
    for number in range(len(there)):
        assert same(folder.read(name(number), TOKENS), kept(number, rows=2000))
    assert said == []


def test_a_folder_is_made_for_its_owner_alone(tmp_path):
    path = prepare_folder(tmp_path / "deep" / "er", 1)
    assert Path(path).stat().st_mode & 0o777 == 0o700
    assert os.listdir(path) == []


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for given in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cache_dir .*file.* is not a folder"):
            prepare_folder(given, 1)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, r"cannot be written \(Permission denied\)"),
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "Read-only"),
    ],
)
def test_a_folder_that_takes_no_files_is_refused(tmp_path, monkeypatch, number, told):
    def refuse(**arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(DaliError, match=told):
        prepare_folder(tmp_path, 2**30)
