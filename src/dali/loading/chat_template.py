"""Whether a model has a chat template, known before its weights are read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dali.errors import DaliError, UsageError
from dali.hooks import seam
from dali.loading import safetensors as load
from dali.loading.gguf.model import GgufModel
from dali.store.gguf.header import read_gguf


def check_chat_template(path: Path, name: str) -> None:
    """UsageError, naming the model, where the directory or GGUF file `path` has no chat template; DaliError for a model that
    cannot be run at all, which is then the worse news. A tokenizer that cannot be read is left to loading."""
    if _has_template(path):
        return
    if path.is_file():
        GgufModel(path)
    else:
        seam.describe_model(load.build_skeleton(load.read_config(path), path), str(path))
    raise no_chat_template(name)


def _has_template(path: Path) -> bool:
    if path.is_file():
        return bool(read_gguf(path).get("tokenizer.chat_template", str))
    with suppress(OSError):  # nearly always enough, and cheaper than the tokenizer
        config = (path / "tokenizer_config.json").read_bytes()
        if (path / "chat_template.jinja").is_file() or b'"chat_template"' in config:
            return True
    try:
        return bool(load.load_tokenizer(path).chat_template)
    except DaliError:
        return True


def no_chat_template(name: str) -> UsageError:
    return UsageError(
        f"{name} has no chat template.",
        "Give a plain prompt (--raw; in Python, `generate`), or a template: `dali run --chat-template`.",
    )
