"""Where dali keeps its files: the user cache, safe to delete at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import xxhash

from dali.store.folders import expanded, user_folder


def cache_root() -> Path:
    """DALI_CACHE_DIR, else the platform's user cache folder."""
    override = os.environ.get("DALI_CACHE_DIR")
    if override:
        return expanded(override, "DALI_CACHE_DIR")
    if sys.platform == "win32":
        return user_folder("LOCALAPPDATA", "AppData/Local") / "dali" / "Cache"
    if sys.platform == "darwin":
        return expanded("~/Library/Caches/dali", "DALI_CACHE_DIR")
    return user_folder("XDG_CACHE_HOME", ".cache") / "dali"


def store_path(model: Path, format: str) -> Path:
    """The store of a model directory in one packed format: one file, replaced when the model changes."""
    directory = model.resolve()
    key = xxhash.xxh3_64_hexdigest(str(directory).encode())
    return cache_root() / "stores" / f"{directory.name[:40]}-{key}" / f"{format}.safetensors"
