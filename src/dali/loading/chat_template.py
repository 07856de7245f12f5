"""Whether a model has a chat template, known before its weights are read."""

from __future__ import annotations

from dali.errors import UsageError
from dali.loading.source import ModelSource


def check_chat_template(source: ModelSource, name: str) -> None:
    """UsageError, naming the model, where `source` has no chat template; DaliError for a model that cannot be run at all, which
    is then the worse news."""
    if not source.has_chat_template:
        _ = source.modules
        raise no_chat_template(name)


def no_chat_template(name: str) -> UsageError:
    return UsageError(
        f"{name} has no chat template.",
        "Give a plain prompt (`dali run --raw`; in Python, `generate`), or a template: `dali run --chat-template`.",
    )
