"""The GGUF architectures that dali reads, one file each.

What llama.cpp builds into an architecture (normalised router weights, alternating windows) stands in its file, as no key says it.
A file with a constant `FAMILY` is all that a new one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from dali.errors import DaliError
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Part
from dali.store.gguf.header import Gguf


@dataclass(frozen=True)
class Family:
    """One architecture. Modules and parameters of a decoder layer are named without its number, others without the decoder."""

    architecture: str  # general.architecture
    model_type: str  # transformers'
    experts: str  # the field of its configuration that counts experts
    fields: Callable[[Keys], Fields]  # those of its configuration that not all families have
    used: str = "num_experts_per_tok"  # the field that says how many of them a token is routed to
    blocks: Mapping[str, str] = field(default_factory=dict)
    """Tensor blk.N.<name> -> module of decoder layer N, or with its suffix -> parameter, where it is not as in gguf/dense.py."""
    top: Mapping[str, str] = field(default_factory=dict)
    """Tensor outside of blocks -> module, likewise."""
    made: Mapping[str, Part] = field(default_factory=dict)
    """Parameter -> what it is made of, where that is not one tensor as it lies."""
    gating: int | None = None
    """How its routers score experts, as ggml numbers it (2: sigmoids), where that cannot be configured."""
    form: Callable[[Keys], Family] | None = None
    """The family of a file, for an architecture that several share."""
    strips_after_tokens: bool = False  # white space after a control token is dropped


def shared_experts(at: str = "mlp.shared_experts") -> dict[str, str]:
    """Of `Family.blocks`: the expert that every token takes, a module of that name."""
    return {f"ffn_{part}_shexp": f"{at}.{part}_proj" for part in ("gate", "up", "down")}


@cache
def families() -> dict[str, Family]:
    """By architecture."""
    known = [import_module(f"{__name__}.{module.name}").FAMILY for module in iter_modules(__path__)]
    return {family.architecture: family for family in known}


def family_of(gguf: Gguf) -> Family:
    """The family of a file. DaliError for an architecture dali cannot read, or a dense model."""
    architecture = gguf.require("general.architecture", str)
    if architecture not in families():
        raise DaliError(
            f"{gguf.path} is a {architecture!r:.60} model, which dali cannot read as GGUF.",
            f"Known architectures: {', '.join(families())}. Others may run from safetensors weights.",
        )
    if not gguf.get(f"{architecture}.expert_count", int, 0):
        raise DaliError(
            f"{gguf.path} is not a Mixture-of-Experts model: its {architecture} metadata counts no experts.",
            "dali is for MoE models; run dense ones with llama.cpp.",
        )
    family = families()[architecture]
    return family if family.form is None else family.form(Keys(gguf, architecture))
