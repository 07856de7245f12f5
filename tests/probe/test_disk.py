"""The disk: a file that is gone afterwards whatever happens, and how many reads at once it is worth."""

from __future__ import annotations

import os
from itertools import count

import pytest

from dali.probe import disk
from dali.probe.disk import Disk, NotMeasured, measure, trial_file
from dali.probe.reading import Reading
from dali.store.arena import Arena
from dali.store.direct_io import PlainFile


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(disk, "FILE", 2**24)


def clock():
    """A clock that goes on by 50 ms each time it is looked at."""
    times = count()
    return lambda: next(times) / 20


def test_the_depth_is_the_least_that_is_about_as_fast():
    speeds = {1: 1.0, 2: 1.9, 4: 2.0, 8: 2.5, 16: 2.6}
    bandwidths = {depth: Reading(speed, 0, 3) for depth, speed in speeds.items()}
    found = Disk(True, Reading(1e-4, 0, 3), Reading(1e10, 0, 3), bandwidths)
    assert found.depth == 8  # 4 brings less than a tenth over 2, 8 more, 16 less over 8
    assert found.seconds(2) == pytest.approx(2 * disk.RECORD / 1.9)


def test_a_disk_is_measured_at_every_depth(small, tmp_path):
    with trial_file(tmp_path) as path:
        assert path.stat().st_size == 2**24
        found = measure(path, clock(), Arena(5, disk.RECORD))
    assert list(found.bandwidths) == [2, 4, 8, 16]
    assert list(found.plain) == ([2, 4, 8, 16] if hasattr(os, "posix_fadvise") else [])
    assert found.latency.value > 0
    assert found.check.value == pytest.approx(16 * disk.RECORD / 0.05)  # of 16, between two looks
    assert os.listdir(tmp_path) == []


def test_an_interrupted_measurement_leaves_no_file(small, tmp_path):
    with pytest.raises(KeyboardInterrupt), trial_file(tmp_path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_write_that_is_interrupted_leaves_no_file(small, tmp_path, monkeypatch):
    def press(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("dali.probe.disk.os.fsync", press)
    with pytest.raises(KeyboardInterrupt), trial_file(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_what_a_killed_measurement_has_left_is_deleted_by_the_next(small, tmp_path):
    old, under_way = tmp_path / "measuring-old", tmp_path / "measuring-now"
    for file in (old, under_way):
        file.touch()
    os.utime(old, (0, 0))
    with trial_file(tmp_path):
        assert not old.exists()
    assert os.listdir(tmp_path) == [under_way.name]


def test_a_full_disk_is_said_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("dali.probe.disk.shutil.disk_usage", lambda folder: _Usage())
    with pytest.raises(NotMeasured, match="GiB free, and measuring it takes 2"), trial_file(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


class _Usage:
    free = 2**30


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotMeasured, match="Nothing can be written"), trial_file(tmp_path / "file" / "cache"):
        pass


def test_a_file_system_without_direct_reads_is_measured_all_the_same(small, tmp_path, monkeypatch):
    monkeypatch.delattr("os.O_DIRECT")
    with trial_file(tmp_path) as path:
        assert not measure(path, clock(), Arena(5, disk.RECORD)).direct


def test_plain_readings_far_apart_leave_the_others_as_they_are(small, tmp_path, monkeypatch):
    speeds = count(1)

    def bandwidth(reads, depth):
        return 1e8 * 30 ** (next(speeds) // 4 % 2) if isinstance(reads._file, PlainFile) else 1e9

    monkeypatch.setattr(disk.Reads, "bandwidth", bandwidth)
    with trial_file(tmp_path) as path:
        found = measure(path, clock(), Arena(5, disk.RECORD))
    assert {reading.value for reading in found.bandwidths.values()} == {1e9}
    assert len(found.left_out) == len(found.bandwidths) - len(found.plain) > 0
    assert all("through the page cache" in why for why in found.left_out)
