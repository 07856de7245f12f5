"""How much memory is free, also where a container or a systemd scope allows less than the machine has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dali.hardware import free_memory
from dali.hardware.free_memory import available_ram

MIB = 2**20


def test_some_memory_is_free() -> None:
    assert 2**20 < available_ram() < 2**50


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB free and control groups of its own, in no group yet."""
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8192 * MIB))
    monkeypatch.setattr(free_memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "OWN", tmp_path / "own")
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_control_groups_all_that_is_free_counts(groups: Path) -> None:
    assert available_ram() == 8192 * MIB


def test_a_container_allows_what_it_has_left(groups: Path) -> None:
    group(groups / "cgroup", memory__max=2048 * MIB, memory__current=500 * MIB)
    assert available_ram() == 1548 * MIB


def test_what_the_kernel_gives_back_at_once_is_free(groups: Path) -> None:
    stat = f"anon {150 * MIB}\nfile {1740 * MIB}\ninactive_file {1700 * MIB}\nactive_file {40 * MIB}\nslab_reclaimable 0"
    group(groups / "cgroup", memory__max=2048 * MIB, memory__current=1900 * MIB, memory__stat=stat)
    assert available_ram() == (2048 - 1900 + 1740) * MIB


def test_the_tightest_limit_of_the_chain_counts(groups: Path) -> None:
    (groups / "own").write_text("0::/user.slice/user-1000.slice/app.scope\n")
    user = groups / "cgroup" / "user.slice" / "user-1000.slice"
    group(user, memory__max=4096 * MIB, memory__current=1024 * MIB, memory__stat="inactive_file 0")
    group(user / "app.scope", memory__max="max", memory__current=0)
    assert available_ram() == 3072 * MIB
    group(user.parent, memory__max=1000 * MIB, memory__current=0)
    assert available_ram() == 1000 * MIB


def test_a_group_that_is_slowed_down_beyond_a_limit_allows_no_more(groups: Path) -> None:
    group(groups / "cgroup", memory__max=4096 * MIB, memory__high=1024 * MIB, memory__current=1000 * MIB)
    assert available_ram() == 24 * MIB
    group(groups / "cgroup", memory__high="max")
    assert available_ram() == 3096 * MIB
    group(groups / "cgroup", memory__max="max", memory__high=1200 * MIB)
    assert available_ram() == 200 * MIB
    group(groups / "cgroup", memory__high=0)  # as who wants a group to be reclaimed in full may set it
    assert available_ram() == 0


def test_groups_without_a_limit_allow_all_that_is_free(groups: Path) -> None:
    (groups / "own").write_text("0::/user.slice/app.scope\n")
    for folder in ("cgroup", "cgroup/user.slice", "cgroup/user.slice/app.scope"):
        group(groups / folder, memory__max="max", memory__high="max", memory__current=7000 * MIB)
    assert available_ram() == 8192 * MIB


def test_more_than_is_free_is_never_allowed(groups: Path) -> None:
    group(groups / "cgroup", memory__max=2**62, memory__high=2**61, memory__current=0)
    assert available_ram() == 8192 * MIB


def test_a_roots_folder_without_files_counts_for_nothing(groups: Path) -> None:
    (groups / "own").write_text("0::/a/b:c/d e\n")  # as the kernel writes names: as they are
    group(groups / "cgroup", cgroup__controllers="cpu memory")
    group(groups / "cgroup" / "a", memory__max=1000 * MIB)  # not what it uses
    group(groups / "cgroup" / "a" / "b:c" / "d e", memory__max=2000 * MIB, memory__current=1500 * MIB)
    assert available_ram() == 500 * MIB


@pytest.mark.parametrize("limit", ["", "nonsense", "-1x", "1.5"])
def test_a_limit_that_cannot_be_read_counts_for_nothing(groups: Path, limit: str) -> None:
    group(groups / "cgroup", memory__max=limit, memory__high=3000 * MIB, memory__current=0)
    assert available_ram() == 3000 * MIB


def test_a_statistic_that_cannot_be_read_gives_nothing_back(groups: Path) -> None:
    stat = f"inactive_file nonsense\nactive_file -5\nslab_reclaimable\n\nanon {9000 * MIB}"
    group(groups / "cgroup", memory__max=2048 * MIB, memory__current=48 * MIB, memory__stat=stat)
    assert available_ram() == 2000 * MIB


def test_a_group_that_is_gone_leaves_those_around_it(groups: Path) -> None:
    (groups / "own").write_text("0::/pods/gone (deleted)\n")
    group(groups / "cgroup" / "pods", memory__max=700 * MIB, memory__current=0)
    assert available_ram() == 700 * MIB


def test_both_versions_at_once_count_each_by_its_own(groups: Path) -> None:
    """As systemd mounts them where memory is still counted by version 1."""
    (groups / "own").write_text("4:memory:/a\n0::/a\n")
    group(groups / "cgroup" / "unified" / "a", cgroup__procs="")
    group(
        groups / "cgroup" / "memory" / "a",
        memory__limit_in_bytes=900 * MIB,
        memory__usage_in_bytes=100 * MIB,
    )
    group(groups / "cgroup" / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=2**33)
    assert available_ram() == 800 * MIB


def test_version_1_counts_by_its_own_files(groups: Path) -> None:
    (groups / "own").write_text("5:cpu:/elsewhere\n4:memory:/docker/abc\n0::/\n")
    group(
        groups / "cgroup" / "memory" / "docker" / "abc",
        memory__limit_in_bytes=1024 * MIB,
        memory__usage_in_bytes=800 * MIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {300 * MIB}",
    )
    assert available_ram() == 524 * MIB


def test_a_group_that_is_over_its_limit_leaves_nothing(groups: Path) -> None:
    group(groups / "cgroup", memory__max=100 * MIB, memory__current=200 * MIB)
    assert available_ram() == 0


def test_a_path_out_of_the_groups_is_not_followed(groups: Path) -> None:
    (groups / "own").write_text("0::/../../etc\nnonsense\n")
    assert available_ram() == 8192 * MIB
