"""What tells one machine from another."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from dali.hardware import machine
from dali.hardware.machine import Machine, differences, disk_of, this_machine
from measured import MACHINE


def test_this_machine_is_itself(tmp_path):
    here = this_machine(tmp_path)
    assert differences(here, this_machine(tmp_path)) == []
    assert here.cpu
    assert here.cores >= 1
    assert here.memory > 2**28
    assert here.disk


def test_a_machine_comes_back_from_json():
    assert Machine.of(json.loads(json.dumps(asdict(MACHINE)))) == MACHINE
    assert Machine.of(None) is None
    for bad in ([1], {}, {**asdict(MACHINE), "colour": "red"}, {**asdict(MACHINE), "memory": 1.5}):
        with pytest.raises((TypeError, ValueError)):
            Machine.of(bad)


def test_a_folder_that_is_not_there_yet_lies_on_its_parents_disk(tmp_path):
    assert disk_of(tmp_path / "a" / "b") == disk_of(tmp_path)


def test_a_disk_is_its_whole_device_and_model(monkeypatch, tmp_path):
    whole = tmp_path / "devices" / "nvme0n1"
    part = whole / "nvme0n1p2"
    (whole / "device").mkdir(parents=True)
    (whole / "device" / "model").write_text("A fast one\n")
    part.mkdir()
    (part / "partition").write_text("2\n")
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    (numbers / "259:2").symlink_to(part)
    monkeypatch.setattr(machine, "DEVICES", numbers)
    monkeypatch.setattr("dali.hardware.machine.os.major", lambda number: 259)
    monkeypatch.setattr("dali.hardware.machine.os.minor", lambda number: 2)
    assert disk_of(tmp_path) == "nvme0n1 A fast one"


def test_a_file_system_without_a_device_is_named_by_its_kind(monkeypatch, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("22 1 0:33 / /home rw - zfs pool/home rw\n")
    monkeypatch.setattr(machine, "DEVICES", tmp_path / "none")
    monkeypatch.setattr(machine, "MOUNTS", mounts)
    monkeypatch.setattr("dali.hardware.machine.os.major", lambda number: 0)
    monkeypatch.setattr("dali.hardware.machine.os.minor", lambda number: 33)
    assert disk_of(tmp_path) == "zfs pool/home"
