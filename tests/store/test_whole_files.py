"""Files are written as a whole, or what was there stays."""

from __future__ import annotations

import os
import stat

import pytest

from dali.store import whole


@pytest.mark.parametrize("name", ["a.txt", "ü" * 120])
def test_a_file_takes_its_place_at_the_end(tmp_path, name):
    path = tmp_path / name
    path.write_text("before")
    with whole.written(path) as file:
        file.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == [name]


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def half() -> None:
        with whole.written(path) as file:
            file.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    whole.check_writable(tmp_path / "file")
    whole.check_writable(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "none" / "a",
        tmp_path / "file" / "a",
        tmp_path / ("a" * 300),
    ):
        with pytest.raises(OSError, match=r"."):
            whole.check_writable(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_a_file_keeps_its_mode_and_a_link_leads_where_it_did(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o600)
    link.symlink_to(path)
    with whole.written(link) as file:
        file.write_text("after")
    assert link.is_symlink()
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_has_the_mode_that_others_have(tmp_path):
    (tmp_path / "other").write_text("")
    with whole.written(tmp_path / "new") as file:
        file.write_text("")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode
