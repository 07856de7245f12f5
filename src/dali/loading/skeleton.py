"""A model on meta, shapes without memory, and whether the engine can step it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from dali.errors import DaliError, reason

ATTENTION_TYPES = {"full_attention", "sliding_attention"}

MOST_LAYERS = 2000  # they are built one after another: a damaged number would take hours


def build_skeleton(config: Any, path: Path) -> nn.Module:
    """The model on meta, experts included: shapes without memory. `path`: where `config` is from."""
    cls = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if cls is None:
        raise DaliError(
            f"{path} is a {config.model_type} model, which transformers has no text generation for.",
            "dali runs causal language models.",
        )
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > MOST_LAYERS:
        raise DaliError(
            f"{path} has {layers} layers, says its config, and no model has more than {MOST_LAYERS}.",
            "Download it again.",
        )
    try:
        with quiet_transformers(), torch.device("meta"):
            model: nn.Module = cls(config)
    except Exception as error:  # as in read_config
        raise DaliError(
            f"transformers cannot build a {cls.__name__} from {path} ({reason(error)}).",
            "Download it again; if it is as published, a newer transformers may be needed.",
        ) from error
    return model


def check_attention(model: Any) -> None:
    """The engine keeps keys and values a sequence; layers with another kind of state cannot be stepped so."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - ATTENTION_TYPES
    if model._is_stateful or kinds or not model._supports_attention_backend:
        what = ", ".join(sorted(kinds)) or "state or attention of its own kind"
        raise DaliError(
            f"{type(model).__name__} has layers the engine cannot step ({what}).",
            "Load it with transformers and use dali.attach(model) to give it dali's experts.",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and notes of transformers' own: dali says what it does itself."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
