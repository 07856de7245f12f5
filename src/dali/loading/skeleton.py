"""A model on meta: shapes without memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin
from transformers.utils import logging as transformers_logging

from dali.errors import DaliError, reason
from dali.hooks import seam
from dali.loading.room import MOST_LAYERS


def text_model(config: Any) -> tuple[Any, Any] | None:
    """transformers' class that generates text by `config`, and the configuration it takes: this one, or its part about text.

    None where it has no such class, or one that generates in its own way. One made for images and text does it, too: `keep_text`
    leaves out the rest.
    """
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        cls = auto._model_mapping.get(type(config), None)
        if cls is not None and issubclass(cls, GenerationMixin):
            of_text = getattr(config, "sub_configs", {}).get("text_config")
            about_text = of_text is not None and cls.config_class is of_text
            return cls, config.get_text_config() if about_text else config
    return None


VISION = "vision"  # how what is for images is called within a decoder


def build_skeleton(config: Any, path: Path) -> nn.Module:
    """The model on meta, experts included: shapes without memory. `path`: where `config` is from."""
    found = text_model(config)
    if found is None:
        raise DaliError(
            f"{path} is a {config.model_type} model, which transformers generates no text with, token by token.",
            "dali runs models that do.",
        )
    cls, config = found
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
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
    keep_text(model)
    return model


def keep_text(model: Any) -> list[str]:
    """Take what text does not pass through out of a model on meta: what stands around its decoder, and experts for images within;
    returns its paths."""
    dropped = keep_decoder(model)
    for path in seam.experts_modules(model):
        if any(part.startswith(VISION) for part in path.split(".")):
            parent, _, name = path.rpartition(".")
            del model.get_submodule(parent)._modules[name]
            dropped.append(path)
    return dropped


def keep_decoder(model: Any) -> list[str]:
    """Take what stands around its decoder (towers for images, projectors) out of a model on meta; returns its paths."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    around = {path.rpartition(".")[0]} - {""}
    dropped = []
    for parent in sorted(around):
        for name, child in list(model.get_submodule(parent).named_children()):
            if child is not decoder:
                del model.get_submodule(parent)._modules[name]
                dropped.append(f"{parent}.{name}")
    return dropped


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
