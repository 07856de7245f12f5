"""A model's files, opened once: what can be known before weights are read, and how they are read.

Safetensors directories and GGUF files each have a class of this shape; whoever loads, lists or examines a model works with
either. Everything but `path` is found out when it is first asked for, and raises a DaliError that says what is wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dali.hooks import seam
from dali.hooks.calls import ModelCalls, model_calls
from dali.kernels.expert import ExpertLayout
from dali.loading.loaded import LoadedModel
from dali.loading.skeleton import build_skeleton
from dali.options import LoadOptions
from dali.progress import Meter
from dali.store.experts_module import ExpertsModule


class ModelSource(ABC):
    """A model that can be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it: the directory's or the file's name."""

    @property
    @abstractmethod
    def config(self) -> Any:
        """Its transformers configuration."""

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on meta, experts included: shapes without memory."""
        return build_skeleton(self.config, self.path)

    @cached_property
    def modules(self) -> list[ExpertsModule]:
        """Its experts modules, in layer order, of a model whose layers the engine can step."""
        modules = seam.describe_model(self.skeleton, str(self.path))
        _ = self.calls
        return modules

    @cached_property
    def calls(self) -> ModelCalls:
        """How a step calls its attention and experts. DaliError: the engine cannot step its layers."""
        return model_calls(self.skeleton)

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template if there is one."""

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """Whether there is one, by the cheapest way to know; a tokenizer that cannot be read is left to loading."""

    @abstractmethod
    def dtype(self, asked: str, compiled: bool) -> torch.dtype:
        """Of the dense part: as `asked`, one of options.DTYPES; `compiled`: it is for the compiled kernels."""

    @abstractmethod
    def layouts(
        self, quant: str, dtype: torch.dtype, ram: int | None, compiled: bool = False
    ) -> list[ExpertLayout]:
        """Each MoE layer's packed layout beside dense weights of `dtype`, in `ram` bytes (None: in what is free now). `compiled`:
        the dense part is for the compiled kernels."""

    @abstractmethod
    def load(
        self, options: LoadOptions, compiled: bool, meter: Meter, notify: Callable[[str], None]
    ) -> LoadedModel:
        """Read it into memory. `compiled`: the dense part is for the CPU's compiled kernels."""


def open_source(path: Path) -> ModelSource:
    """The model that lies at `path`, a directory with safetensors weights or a GGUF file. Nothing is read yet."""
    if path.is_dir():
        from dali.loading.safetensors import SafetensorsModel

        return SafetensorsModel(path)
    from dali.loading.gguf.model import GgufModel

    return GgufModel(path)
