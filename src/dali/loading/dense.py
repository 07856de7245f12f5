"""transformers' own loading of a model's dense weights, without its experts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from dali.errors import DaliError, reason
from dali.hooks import attention, seam
from dali.loading.skeleton import keep_text, quiet_transformers, text_model


def load_dense(
    path: Path,
    config: Any,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
    without: Collection[str] = (),
    generation: GenerationConfig | None = None,
) -> Any:
    """transformers' own loading of all but the experts, by a throw-away subclass that drops them on meta.

    The weights come from the directory `path`, or are `state`, parameter -> tensor of `dtype`, which the model keeps.
    The linears and embeddings `without` get none but what is tied to others'. `generation`: its configuration for generating, in
    place of what transformers would read.
    """
    found = text_model(config)
    assert found is not None, "its skeleton was built"
    cls, config = found
    with quiet_transformers():
        try:
            model, info = _without_experts(cls, without).from_pretrained(
                path if state is None else None,
                state_dict=state,
                config=config,
                dtype=dtype,
                experts_implementation=seam.IMPLEMENTATION,
                generation_config=generation,
                attn_implementation={"": attention.IMPLEMENTATION, "text_config": attention.IMPLEMENTATION},
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DaliError(
                f"transformers cannot load {path} ({reason(error)}).", "Download the model again."
            ) from error
    for name in sorted(info["missing_keys"]):
        raise DaliError(f"{path} has no weights for {name}.", "Download the model again, or pick another.")
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise DaliError(
            f"{name} in {path} is {list(found)}, its config says {list(expected)}.",
            "Download the model again.",
        )
    # Weights of unchanged dtype still are views of the mapped file; our own copy stays under a step.
    for tensor in (*model.parameters(), *model.buffers()) if state is None else ():
        tensor.data = tensor.data.clone()
    return model.eval().requires_grad_(False)


def _without_experts(base: Any, without: Collection[str]) -> Any:
    """A throw-away subclass of a transformers model that drops experts, what text does not pass through, and the weights of the
    modules `without`, and turns itself back into `base`."""

    class Stub(base):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            dropped = keep_text(self)
            names = seam.experts_modules(self)
            seam.strip_experts(self)
            tied = self.all_tied_weights_keys
            for name in without:
                source = tied.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
                if source in without:
                    tied.pop(f"{name}.weight", None)
                    seam.strip(self.get_submodule(name), "weight")
            patterns = {_any_layer(name) for name in (*names, *dropped)}
            ignored: set[str] = set(getattr(self, "_keys_to_ignore_on_load_unexpected", None) or ())
            self._keys_to_ignore_on_load_unexpected = ignored | patterns
            self.__class__ = base

    # transformers' conversion mapping keys on both
    Stub.__name__, Stub.__module__ = base.__name__, base.__module__
    return Stub


def _any_layer(name: str) -> str:
    """A regex for the keys of an experts module, in any layer."""
    return ".".join(r"\d+" if part.isdigit() else part for part in name.split(".")) + r"\."
