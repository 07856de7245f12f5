"""Control groups that limit what a benchmark's programs may take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "tools"))
import memory_group

LIMIT = 64 * 2**20


@pytest.fixture
def group():
    try:
        group = memory_group.MemoryGroup(LIMIT)
    except OSError:
        pytest.skip("no control group can be made here")
    yield group
    group.close()
    assert not group.folder.exists()


@pytest.mark.parametrize(("mib", "code"), [(20, 0), (200, -9)])
def test_who_takes_more_is_killed_and_the_peak_is_known(group, mib, code):
    command = [sys.executable, "-c", f"b'x' * {mib * 2**20}"]
    assert subprocess.run(command, preexec_fn=group.join()).returncode == code
    assert group.kills == (1 if code else 0)
    assert mib * 2**20 * (code == 0) < group.peak <= LIMIT


def test_where_none_can_be_made_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_group, "ROOTS", {1: tmp_path / "none", 2: tmp_path})
    with pytest.raises(OSError, match=r"No control group can limit memory here.*Run this as root\."):
        memory_group.MemoryGroup(LIMIT)
    assert not list(tmp_path.iterdir())


def test_version_2_is_written_and_read_by_its_own_files(tmp_path, monkeypatch):
    """In a made-up tree, as a kernel has one version's controllers alone."""
    make = Path.mkdir

    def mkdir(folder, *given, **options):  # as the kernel fills a new group's folder
        make(folder, *given, **options)
        for name, content in {
            "memory.max": "max",
            "memory.high": "max",
            "memory.swap.max": "max",
            "memory.peak": str(2**20),
            "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0",
            "cgroup.procs": "",
        }.items():
            (folder / name).write_text(content + "\n")

    monkeypatch.setattr(memory_group, "ROOTS", {1: tmp_path / "none", 2: tmp_path})
    monkeypatch.setattr(Path, "mkdir", mkdir)
    group = memory_group.MemoryGroup(LIMIT)
    assert group.version == 2
    assert (group.folder / "memory.max").read_text() == str(LIMIT)
    assert (group.folder / "memory.swap.max").read_text() == "0"
    assert (group.peak, group.kills) == (2**20, 1)
    group.join()()
    assert (group.folder / "cgroup.procs").read_text() == str(os.getpid())
