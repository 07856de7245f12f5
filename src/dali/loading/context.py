"""How many tokens a sequence may have, as far as the model's files say it in plain."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dali.errors import DaliError, UsageError
from dali.loading.locate import display_name


def check_context(path: Path, asked: int | None) -> None:
    """UsageError where the model's own files say that it cannot have `asked` tokens. It spares the seconds that importing torch
    takes before loading would say the same; files that do not say are left to that."""
    if asked is None:
        return
    most = None
    with suppress(OSError, ValueError, DaliError):  # loading says better what is wrong with a file
        most = _most_in_gguf(path) if path.is_file() else _most_in_directory(path)
    if isinstance(most, int):
        check_range(asked, most, display_name(path))


def _most_in_directory(directory: Path) -> Any:
    config = json.loads((directory / "config.json").read_bytes())
    return config.get("max_position_embeddings") if isinstance(config, dict) else None


def _most_in_gguf(path: Path) -> Any:
    from dali.store.gguf.header import read_gguf

    gguf = read_gguf(path)
    return gguf.get(f"{gguf.require('general.architecture', str)}.context_length", int)


def check_range(asked: int, most: int, name: str) -> None:
    """UsageError where a model called `name`, which can have `most` tokens, cannot have `asked`."""
    if not 1 < asked <= most:
        raise UsageError(f"The context size {asked} is out of range.", f"{name} takes 2 to {most} tokens.")
