"""What of a path is there, and where the platform has a user's folders."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from dali.errors import UsageError
from dali.store.cache import cache_root
from dali.store.folders import existing, expanded, user_folder


def test_the_nearest_folder_that_is_there_is_found_whatever_stands_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert existing(tmp_path) == tmp_path
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path / ("a" * 300) / "b") == tmp_path  # a name that no file system takes
    assert existing(tmp_path / "file" / "b") == tmp_path / "file"
    monkeypatch.chdir(tmp_path)
    assert existing(Path("a")) == tmp_path


def test_a_variable_that_is_blank_names_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_FOLDER", " ")
    assert user_folder("SOME_FOLDER", ".some") == tmp_path / ".some"
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    assert user_folder("SOME_FOLDER", ".some") == Path("/elsewhere")


def test_a_home_that_nobody_has_is_refused(monkeypatch):
    with pytest.raises(
        UsageError, match="cache_dir would be ~nobody-here/x, and the system knows no such home"
    ):
        expanded("~nobody-here/x", "cache_dir")
    monkeypatch.setenv("DALI_CACHE_DIR", "~nobody-here")
    with pytest.raises(UsageError, match="DALI_CACHE_DIR would be"):
        cache_root()


def test_a_user_without_a_home_has_to_name_folders(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UsageError, match=r"SOME_FOLDER would be ~/\.some"):
        user_folder("SOME_FOLDER", ".some")
