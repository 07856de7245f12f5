"""Where dali keeps its files: the user cache, safe to delete at any time."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import xxhash


def cache_root() -> Path:
    """DALI_CACHE_DIR, else the platform's user cache folder."""
    override = os.environ.get("DALI_CACHE_DIR")
    if override:
        return Path(override).expanduser()
    return Path(platformdirs.user_cache_dir("dali", appauthor=False))


def store_path(model: Path, format: str) -> Path:
    """The store of a model directory in one packed format: one file, replaced when the model changes."""
    directory = model.resolve()
    key = xxhash.xxh3_64_hexdigest(str(directory).encode())
    return cache_root() / "stores" / f"{directory.name[:40]}-{key}" / f"{format}.safetensors"
