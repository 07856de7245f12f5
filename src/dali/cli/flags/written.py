"""Files that a verb writes: refused before anything takes long, and written as a whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dali.errors import DaliError, UsageError
from dali.store import whole


def check_written(name: str) -> None:
    """UsageError for a file that cannot be written."""
    try:
        whole.check_writable(Path(name))
    except OSError as error:
        raise UsageError(
            f"{name!r} is no file that can be written ({error.strerror or error}).",
            "Name one in a writable folder.",
        ) from error


def check_suffix(name: str, flag: str, kinds: Mapping[str, str]) -> None:
    """UsageError for a file that cannot be written, or whose suffix is none of `kinds`, which says what each is."""
    if Path(name).suffix.lower() not in kinds:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise UsageError(
            f"--{flag} does not know what to write into {name!r}.", f"Give a file that ends in {known}."
        )
    check_written(name)


def write_whole(name: str, text: str) -> None:
    """A whole file or none. DaliError: it cannot be."""
    try:
        with whole.written(Path(name)) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DaliError(
            f"Cannot write {name} ({error.strerror or error}).", "Name a file in a writable folder."
        ) from error
