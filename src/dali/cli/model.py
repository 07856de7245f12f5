"""The MODEL that `run`, `bench` and `trace` take: its flags, finding it, loading it as they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils.tqdm import disable_progress_bars

from dali.cli.interrupt import ending_at_once
from dali.cli.terminal import is_terminal, log, meter, passing_note
from dali.loading.locate import locate
from dali.options import LoadOptions

if TYPE_CHECKING:
    from dali.llm import LLM

MODEL_FLAGS = ("ctx-size", "quant", "dtype", "ram", "threads", "offline")


def find_model(model: str, settings: SimpleNamespace) -> Path:
    """Where `model` lies; downloads it where --offline does not forbid. Errors are `locate`'s."""
    if not is_terminal():
        disable_progress_bars()  # the Hugging Face hub's
    return locate(model, settings.offline)


def load_model(
    model: str, directory: Path, settings: SimpleNamespace, chat: bool = False, **accelerator: Any
) -> LLM:
    """The model that lies in `directory`, as MODEL_FLAGS say. chat: it needs a chat template of its own; `accelerator`: more of
    what `dali.load` takes."""
    options = LoadOptions(
        quant=settings.quant or "auto",
        dtype=settings.dtype or "auto",
        ctx_size=settings.ctx_size,
        ram=settings.ram,
        threads=settings.threads,
        offline=settings.offline,
        **accelerator,
    )
    passing_note(f"Loading {model} ...")
    with ending_at_once():
        from dali.entry import load_source, prepare
        from dali.loading.chat_template import check_chat_template
        from dali.loading.source import open_source

    prepare(options, log.info)
    source = open_source(directory)
    if chat:
        check_chat_template(source, model)
    return load_source(source, options, meter, log.info)
