"""What of a path is there, and where the platform has a user's folders."""

from __future__ import annotations

from pathlib import Path

from dali.store.folders import existing, user_folder


def test_the_nearest_folder_that_is_there_is_found_whatever_stands_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert existing(tmp_path) == tmp_path
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path / ("a" * 300) / "b") == tmp_path  # a name that no file system takes
    assert existing(tmp_path / "file" / "b") == tmp_path / "file"
    monkeypatch.chdir(tmp_path)
    assert existing(Path("a")) == tmp_path


def test_a_variable_that_is_blank_names_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("SOME_FOLDER", " ")
    assert user_folder("SOME_FOLDER", ".some") == tmp_path / ".some"
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    assert user_folder("SOME_FOLDER", ".some") == Path("/elsewhere")
