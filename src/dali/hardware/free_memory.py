"""How much memory this machine has left."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # which control groups this process is in
# Of a control group, version 2 and version 1: what it may use and what it uses. Beyond `memory.high` a process is not killed, but
# slowed down until it hardly runs.
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
# What the kernel gives back at once when memory is asked for, though it counts as used. In version 1 these are without what lies
# below the group, which "total_" before them includes.
RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")


def available_ram() -> int:
    """Bytes a process can take without swapping: free in the system, and still allowed to each control group it is in."""
    available = int(psutil.virtual_memory().available)
    for group in _groups():
        for limit, usage in LIMITS:
            room = _room(group, limit, usage)
            if room is not None:
                available = min(available, max(room, 0))
    return available


def own_memory() -> int:
    """Bytes of memory that this process has, those of files it has mapped included. What its allocator keeps for later is given
    back first."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def _groups() -> Iterator[Path]:
    """The folders of this process's memory control groups and of those around them: the tightest limit of the chain counts. In a
    container the root's folder is often the container's own group."""
    yield GROUPS
    yield GROUPS / "memory"
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path, without controllers for version 2
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        below = PurePosixPath(path.lstrip("/"))
        if path.startswith("/") and ".." not in below.parts:
            root = GROUPS / "memory" if controllers else GROUPS
            yield from (root / part for part in (below, *below.parents) if part.parts)


def _room(group: Path, limit: str, usage: str) -> int | None:
    """Bytes that a control group may still take; None where it has no limit."""
    try:
        room = int((group / limit).read_text()) - int((group / usage).read_text())
    except (OSError, ValueError):  # no such controller, or "max"
        return None
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return room
    counts = dict(line.split(" ", 1) for line in lines if " " in line)
    totals = (counts.get(f"total_{name}", counts.get(name, "0")) for name in RECLAIMABLE)
    return room + sum(int(total) for total in totals if total.strip().isdecimal())
