"""Folders of the user's: where the platform has them, and what of a path is there."""

from __future__ import annotations

import os
from pathlib import Path


def user_folder(variable: str, default: str) -> Path:
    """What the variable names, else the platform's default below the home folder."""
    return Path(os.environ.get(variable, "").strip() or Path.home() / default)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that is there and not below one that may not be looked into."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # Path's raises there
