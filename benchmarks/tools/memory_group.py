"""A control group of Linux, version 1 or 2, that limits a process's memory with the page cache it fills."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOTS = {1: Path("/sys/fs/cgroup/memory"), 2: Path("/sys/fs/cgroup")}
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}
PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
REASON = (
    "No control group can limit memory here: neither /sys/fs/cgroup/memory (version 1) nor /sys/fs/cgroup (version 2) lets this "
    "user make one. Run this as root."
)


class MemoryGroup:
    """A group of its own for processes that `join` in their first moment, at most `limit` bytes together. OSError: it cannot be
    had."""

    def __init__(self, limit: int) -> None:
        self.version, self.folder = _make()
        try:
            self._write(LIMIT[self.version], limit)
            with suppress(OSError):  # a kernel without swap
                self._write(SWAP[self.version], limit if self.version == 1 else 0)
        except OSError as error:
            self.close()
            raise OSError(REASON) from error

    def join(self) -> Callable[[], None]:
        """For subprocess's preexec_fn."""
        path = self.folder / "cgroup.procs"
        return lambda: path.write_text(str(os.getpid())) and None

    @property
    def peak(self) -> int:
        """Most bytes that were charged at a time: memory, the page cache, and what the kernel keeps for them."""
        return int((self.folder / PEAK[self.version]).read_text())

    @property
    def kills(self) -> int:
        """Processes killed as they needed more."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        counts = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(counts.get("oom_kill", 0))

    def close(self) -> None:
        with suppress(OSError):  # what is left in it ends with its processes
            self.folder.rmdir()

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))


def _make() -> tuple[int, Path]:
    for version, root in ROOTS.items():
        folder = root / f"dali-benchmark-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            if (folder / LIMIT[version]).exists():
                return version, folder
            folder.rmdir()
    raise OSError(REASON)
