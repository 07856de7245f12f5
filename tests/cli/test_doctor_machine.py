"""`dali doctor` without a model: this machine, what is wrong with it, and what mends that."""

from __future__ import annotations

import errno
import json
import os

import huggingface_hub

from dali.doctor import machine


def test_the_machine_is_told_with_what_mends_it(run, monkeypatch):
    monkeypatch.setattr(machine, "LOW_DISK", 2**60)
    code, out, _ = run("doctor")
    assert code == 0
    assert "`dali bench hw`" in out
    assert "DALI_CACHE_DIR" in out


def test_models_from_the_hub_are_where_its_library_keeps_them(run, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "mine"))
    assert f"{tmp_path / 'mine'}, " in run("doctor")[1]


def test_a_folder_that_cannot_be_written_is_broken(run, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "file"))
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert any(row["broken"] and row["fix"] for row in json.loads(out))


def test_a_folder_that_may_not_be_looked_into_is_broken(run, monkeypatch, tmp_path):
    private, stat = tmp_path / "private", os.stat
    private.mkdir()

    def refuse(path, *arguments, **options):
        if str(path).startswith(f"{private}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr("os.stat", refuse)
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(private))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(private / "hub"))
    code, out, _ = run("doctor")
    assert code == 1
    said = (
        f"{private / 'hub'} cannot be written.\nMake it writable, or name another: `export HF_HUB_CACHE=DIR`."
    )
    assert said in out
