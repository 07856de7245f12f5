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
    """The name of a file to be written, beside `path`; at the end it is on the disk, and takes its place. OSError: it cannot."""
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def check_writable(path: Path) -> None:
    """OSError where `written` could not write now: before it is seen after minutes."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(EINVAL, "it is no plain file")
    with tempfile.TemporaryFile(dir=path.parent):
        pass
