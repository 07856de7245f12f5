"""Where stores go."""

from __future__ import annotations

import sys
from pathlib import Path

from dali.store.cache import cache_root, store_path


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("DALI_CACHE_DIR", "~/somewhere")
    assert cache_root() == Path.home() / "somewhere"
    monkeypatch.setenv("DALI_CACHE_DIR", "")
    assert cache_root().name == "dali"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DALI_CACHE_DIR")
    assert cache_root() == tmp_path / "xdg" / "dali"


def test_without_it_the_platform_does(monkeypatch, tmp_path):
    monkeypatch.delenv("DALI_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_root() == tmp_path / ".cache" / "dali"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == tmp_path / "Library" / "Caches" / "dali"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_root() == tmp_path / "local" / "dali" / "Cache"
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_root() == tmp_path / "AppData" / "Local" / "dali" / "Cache"


def test_a_store_belongs_to_one_directory_and_format(monkeypatch, tmp_path):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "model")
    paths = {store_path(tmp_path / folder / "model", format) for folder in "ab" for format in ("w8", "w4")}
    assert len(paths) == 4
    assert all(path.is_relative_to(tmp_path / "cache" / "stores") for path in paths)
    assert store_path(Path("a/model"), "w8") == store_path(tmp_path / "link", "w8")
    assert store_path(tmp_path / ("x" * 300), "w8").parent.name.startswith("x" * 40)
