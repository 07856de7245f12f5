"""The MODEL that `run`, `bench` and `trace` take: finding it, and loading it as their flags say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dali.cli.flags.model import Model
from dali.cli.importing import importing
from dali.cli.terminal import is_terminal, log, meter, passing_note
from dali.doctor.before import before_download
from dali.loading.context import check_context
from dali.loading.locate import locate
from dali.options import LoadOptions

if TYPE_CHECKING:
    from dali.llm import LLM


def find_model(model: str, settings: Model) -> Path:
    """Where `model` lies; downloads it where --offline does not forbid, and it can run here. Errors are `locate`'s."""
    if not is_terminal():  # the Hugging Face hub's library reads this when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return locate(model, settings.offline, before_download(settings.load_options(), log.info))


def load_model(
    model: str, directory: Path, options: LoadOptions, chat: bool = False, template: str | None = None
) -> LLM:
    """The model that lies in `directory`. chat: it needs a chat template; `template` takes the place of its own."""
    passing_note(f"Loading {model} ...")
    check_context(directory, options)
    with importing():
        from dali.entry import load_source, prepare
        from dali.loading.chat_template import check_chat_template
        from dali.loading.source import open_source

    prepare(options, log.info)
    source = open_source(directory)
    if template is not None:
        source.tokenizer.chat_template = template
    elif chat:
        check_chat_template(source, model)
    return load_source(source, options, meter, log.info)
