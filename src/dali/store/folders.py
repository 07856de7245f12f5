"""Folders of the user's: where the platform has them, and what of a path is there."""

from __future__ import annotations

import os
from pathlib import Path

from dali.errors import UsageError


def user_folder(variable: str, default: str) -> Path:
    """What the variable names, else the platform's default below the home folder."""
    given = os.environ.get(variable, "").strip()
    return Path(given) if given else expanded(f"~/{default}", variable)


def expanded(given: str | os.PathLike[str], name: str) -> Path:
    """The path with the home that its ~ stands for. UsageError, which calls it `name`: there is no such home."""
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{name} would be {os.fspath(given)}, and the system knows no such home.",
            f"Give the whole path of a folder as {name}.",
        ) from error


def existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that is there and not below one that may not be looked into."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # Path's raises there
