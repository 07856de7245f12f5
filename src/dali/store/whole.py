"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """The name of a new file to be written, beside what `path` leads to; at the end it is on the disk, and takes its place and
    its mode. OSError: it cannot."""
    path = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(".tmp", f".{path.name[:40]}.", path.parent)  # nobody can have foreseen it
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_mode(path))
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def _mode(path: Path) -> int:
    """Of the file that is there, or of a new one."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def check_writable(path: Path) -> None:
    """OSError where `written` could not write now: before it is seen after minutes."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(EINVAL, "it is no plain file")
    with tempfile.TemporaryFile(dir=path.parent):
        pass
