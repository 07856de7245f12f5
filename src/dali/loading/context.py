"""How many tokens a sequence may have, as far as the model's files say it in plain."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dali.errors import DaliError, UsageError
from dali.loading.locate import display_name
from dali.loading.rope import scale_rope
from dali.options import LoadOptions


def check_context(path: Path, options: LoadOptions) -> None:
    """UsageError where the model's own files say that it cannot have as many tokens as `options` ask. It spares the seconds that
    importing torch takes before loading would say the same; files that do not say are left to that."""
    if options.ctx_size is None:
        return
    most: Any = None
    rope: Any = None
    with suppress(
        OSError, ValueError, RecursionError, DaliError
    ):  # loading says better what is wrong with a file
        most, rope = _said_by_gguf(path) if path.is_file() else _said_by_config(path)
    if type(most) is int and isinstance(rope, dict):
        _, most = scale_rope(rope, most, options, display_name(path))
        check_range(options.ctx_size, most, display_name(path))


def _said_by_config(directory: Path) -> tuple[Any, Any]:
    config = json.loads((directory / "config.json").read_bytes())
    if not isinstance(config, dict):
        return None, None
    text = config.get("text_config")  # of a model that takes images, too
    config = text if isinstance(text, dict) else config
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return config.get("max_position_embeddings"), rope


def _said_by_gguf(path: Path) -> tuple[Any, Any]:
    from dali.loading.gguf.keys import Keys  # and numpy, too slow to import for --help
    from dali.store.gguf.header import read_gguf

    gguf = read_gguf(path)
    keys = Keys(gguf, gguf.require("general.architecture", str))
    return keys.required("context_length"), keys.rope()


def check_range(asked: int, most: int, name: str) -> None:
    """UsageError where a model called `name`, which can have `most` tokens, cannot have `asked`."""
    if not 1 < asked <= most:
        raise UsageError(f"The context size {asked} is out of range.", f"{name} takes 2 to {most} tokens.")
