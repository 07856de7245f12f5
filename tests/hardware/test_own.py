"""This machine's own profile: whatever is wrong with it is said in a sentence, and nothing fails of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from dali.errors import DaliError, UsageError
from dali.hardware import own
from dali.hardware import profile as profiles
from measured import ACCELERATED, MACHINE, measured, without_machine


@pytest.fixture
def here(monkeypatch):
    """What this machine is; changed by the test."""
    found = {"machine": MACHINE}
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: found["machine"])
    return found


@pytest.fixture
def said():
    return []


def test_nothing_is_said_where_nothing_was_measured(said):
    assert own.find(said.append) is None
    assert said == []


def test_what_was_written_is_found(here, said):
    own.write(measured())
    assert own.find(said.append) == measured() == profiles.load(profiles.OWN)
    assert said == []
    assert os.listdir(own.config_root()) == ["machine.json"]
    assert own.origin(measured()) == "this machine, measured on 2026-11-30 by dali 0.1"


def test_a_folder_in_its_place_is_said(said):
    own.own_path().mkdir(parents=True)
    assert own.find(said.append) is None
    assert "cannot be read (" in said[0]
    with pytest.raises(DaliError, match=r"cannot be read|Cannot read"):
        own.read()


def test_one_that_was_asked_for_and_is_not_there_is_refused():
    with pytest.raises(UsageError, match="never measured") as caught:
        profiles.load(profiles.OWN)
    assert "dali bench hw" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu": "another CPU"}, "8 cores of a made-up CPU, not 8 of another CPU"),
        ({"cores": 4}, "not 4 of a made-up CPU"),
        ({"memory": 16 * 2**30}, "32 GiB of memory, not 16"),
        ({"kernels": "avx512"}, "kernels avx2, not avx512"),
    ],
)
def test_one_of_another_machine_is_left_alone_and_said(here, said, change, told):
    own.write(measured())
    here["machine"] = replace(MACHINE, **change)
    assert own.find(said.append) is None
    assert len(said) == 1
    assert "another machine" in said[0]
    assert told in said[0]
    assert "dali bench hw" in said[0]
    assert own.own_path().is_file()
    with pytest.raises(DaliError, match="another machine"):
        profiles.load(profiles.OWN)


def test_memory_may_differ_by_what_the_system_keeps_for_itself(here, said):
    own.write(measured())
    here["machine"] = replace(MACHINE, memory=MACHINE.memory - 2**29)
    assert own.find(said.append) is not None


def test_figures_of_a_disk_or_gpu_that_is_no_longer_there_are_left_out(here, said):
    own.write(measured(replace(MACHINE, gpu="GPU A"), **ACCELERATED))
    here["machine"] = replace(MACHINE, gpu="GPU A", disk="sda")
    found = own.find(said.append)
    assert found is not None
    assert not found.has_disk
    assert found.has_accelerator
    here["machine"] = replace(MACHINE, gpu="GPU B")
    found = own.find(said.append)
    assert found is not None
    assert found.has_disk
    assert not found.has_accelerator


def edited(**changes):
    return json.dumps({**json.loads(measured().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not a JSON object"),
        ("", "not a JSON object"),
        ("\x00\xff", "not a JSON object"),
        (edited(schema=99), "has schema 99"),
        (edited(figures={}), "'memory_bandwidth' is missing"),
        (edited(machine=3), "no 3"),
        (edited(machine={**json.loads(measured().to_json())["machine"], "cores": "8"}), "cores is '8'"),
    ],
)
def test_one_that_cannot_be_read_is_set_aside(here, said, text, told):
    own.config_root().mkdir()
    own.own_path().write_text(text)
    assert own.find(said.append) is None
    assert len(said) == 1
    assert told in said[0]
    assert "set aside as machine.broken.json" in said[0]
    assert os.listdir(own.config_root()) == ["machine.broken.json"]
    assert own.find(said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 0.0, 600e9])
def test_absurd_figures_are_set_aside(here, said, value):
    figures = json.loads(measured().to_json())["figures"]
    figures["cpu_bandwidth"]["value"] = value
    own.config_root().mkdir()
    own.own_path().write_text(edited(figures=figures))
    assert own.find(said.append) is None
    assert "cpu_bandwidth" in said[0]


def test_what_another_disk_reads_through_the_page_cache_says_nothing_of_this_one(here, said):
    own.write(measured(plain_bandwidth=6e9, plain_queue_depth=4.0))
    assert own.find(said.append).reads_plainly
    here["machine"] = replace(MACHINE, disk="sda another disk")
    assert own.find(said.append).plain_share is None


def test_one_without_a_machine_is_nobodys(here, said):
    own.write(without_machine(measured()))
    assert own.find(said.append) is None
    assert "does not say which machine" in said[0]


def test_a_folder_in_the_way_or_a_home_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    (tmp_path / "machine.json").mkdir()
    for folder in (tmp_path, tmp_path / "file"):
        monkeypatch.setenv("DALI_CONFIG_DIR", str(folder))
        with pytest.raises(DaliError, match="Cannot write") as caught:
            own.check_writable()
        assert "--output" in caught.value.fix


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(here, monkeypatch):
    own.write(measured())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dali.store.whole.os.fsync", full)
    with pytest.raises(DaliError, match="No space left"):
        own.write(measured(cpu_rate=2e12))
    assert os.listdir(own.config_root()) == ["machine.json"]
    assert profiles.load(profiles.OWN) == measured()


def test_a_home_that_nobody_has_is_said_and_harms_nothing(said, monkeypatch):
    monkeypatch.setenv("DALI_CONFIG_DIR", "~nobody-here")
    assert own.find(said.append) is None
    assert "DALI_CONFIG_DIR would be ~nobody-here" in said[0]


def test_where_it_lies(monkeypatch, tmp_path):
    assert own.config_root() == tmp_path / "config"
    monkeypatch.delenv("DALI_CONFIG_DIR")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert own.own_path() == tmp_path / "xdg" / "dali" / "machine.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own.own_path() == tmp_path / ".config" / "dali" / "machine.json"
