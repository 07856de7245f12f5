"""Files that a verb writes: refused before anything takes long, and written as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dali.errors import DaliError, UsageError


def check_written(name: str) -> None:
    """UsageError for a file that cannot be written."""
    path = Path(name)
    if (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{name!r} is no file that can be written.", "Name one in a writable folder.")


def check_suffix(name: str, flag: str, kinds: Mapping[str, str]) -> None:
    """UsageError for a file that cannot be written, or whose suffix is none of `kinds`, which says what each is."""
    if Path(name).suffix.lower() not in kinds:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise UsageError(
            f"--{flag} does not know what to write into {name!r}.", f"Give a file that ends in {known}."
        )
    check_written(name)


def write_whole(name: str, text: str) -> None:
    """A whole file or none."""
    path = Path(name)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        os.chmod(temporary, 0o644)
        temporary.replace(path)
    except OSError as error:
        raise DaliError(
            f"Cannot write {name} ({error.strerror or error}).", "Name a file in a writable folder."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # it was renamed
                temporary.unlink()
