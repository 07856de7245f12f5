"""A control group of Linux around a process: how much memory the kernel counts for it, the page cache included."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dali.hardware.free_memory import GROUPS, OWN

MEMORY = GROUPS / "memory"  # of version 1


class NoControlGroups(Exception):
    """None can be made here; str() says why."""


class ControlGroup:
    """An empty group at `path`. NoControlGroups: it cannot be made."""

    def __init__(self, path: Path, peak: str, limit: str) -> None:
        self.path, self._peak, self._limit = path, path / peak, path / limit
        try:
            path.mkdir()
        except OSError as error:
            raise NoControlGroups(
                f"no control group can be made at {path.parent}: {error.strerror}"
            ) from error
        if not self._peak.exists():
            path.rmdir()
            raise NoControlGroups(
                f"the control groups at {path.parent} do not tell of the most memory ({peak})"
            )

    def command(self, command: Sequence[str]) -> list[str]:
        """What runs a command in the group."""
        return ["sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh", *command]

    def limit(self, nbytes: int) -> None:
        """Beyond so much the kernel reclaims the page cache, and where that is not enough kills."""
        self._limit.write_text(str(nbytes))

    @property
    def peak(self) -> int:
        """The most bytes that were counted at a time."""
        return int(self._peak.read_text())


@contextmanager
def control_group() -> Iterator[ControlGroup]:
    """A new group; all its processes have to have ended in the end. NoControlGroups: none can be made."""
    name = f"dali-{os.getpid()}"
    if MEMORY.is_dir():
        lines = OWN.read_text().splitlines()
        own = next(
            (line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")), "/"
        )
        below = MEMORY / own.lstrip("/")
        place = below if below.is_dir() else MEMORY  # in a container the own group is the root that it sees
        group = ControlGroup(place / name, "memory.max_usage_in_bytes", "memory.limit_in_bytes")
    elif GROUPS.is_dir():
        group = ControlGroup(GROUPS / name, "memory.peak", "memory.max")
    else:
        raise NoControlGroups(f"there are no control groups at {GROUPS}")
    try:
        yield group
    finally:
        group.path.rmdir()
