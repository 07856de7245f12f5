"""What a model takes in memory: the packed format its experts can have, and how many tokens a sequence may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dali.errors import DaliError
from dali.hardware.free_memory import available_ram
from dali.hooks import seam
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import get_format
from dali.loading.context import check_range
from dali.loading.loaded import describe_layouts
from dali.loading.room import first_that_fits, needed, out_of_memory
from dali.loading.rope import scale_rope
from dali.options import LoadOptions
from dali.store.experts_module import ExpertsModule


def choose_context(config: Any, options: LoadOptions, name: str) -> int:
    """Tokens a sequence may have: as `options` ask, or all that `config` says the model can, which then holds the rotary scaling
    that they ask for. UsageError: it cannot. DaliError: `config` does not say."""
    config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if type(most) is not int or most < 2:
        raise DaliError(
            f"The config of {name} gives it a context of {most!r} tokens, which it cannot have.",
            "Correct its max_position_embeddings, or download it again.",
        )
    rope, most = scale_rope(getattr(config, "rope_parameters", None) or {}, most, options, name)
    if options.ctx_size is not None:
        check_range(options.ctx_size, most, name)
    if rope:
        config.rope_parameters = rope
    config.max_position_embeddings = most
    return most if options.ctx_size is None else options.ctx_size


def count_dense_bytes(skeleton: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all weights but the experts', of a model on meta, in `dtype`."""
    experts = {id(p) for module in seam.experts_modules(skeleton).values() for p in module.parameters()}
    return sum(p.numel() for p in skeleton.parameters() if id(p) not in experts) * dtype.itemsize


def choose_layouts(
    candidates: Sequence[list[ExpertLayout]],
    smallest: list[ExpertLayout],
    experts: int,
    dense_bytes: int,
    ram: int | None,
    what: object,
    freed: int = 0,
) -> list[ExpertLayout]:
    """The first of `candidates`, a layout for each MoE layer of `experts` experts, that fits `ram` bytes beside dense weights.

    `ram`: None for what is free now, with `freed` bytes more. DoesNotFit, naming `what`, when nothing fits; it then advises the
    `smallest` if that would.
    """
    free = available_ram() + freed
    sizes = [sum(experts * layout.record_bytes for layout in each) for each in (*candidates, smallest)]
    fits = first_that_fits(sizes[:-1], dense_bytes, free if ram is None else ram)
    if fits is not None:
        return candidates[fits]
    layouts = candidates[-1]
    need, least = needed(sizes[-2], dense_bytes), needed(sizes[-1], dense_bytes)
    error = out_of_memory(what, describe_layouts(layouts), need, least, ram, free)
    error.layouts, error.dense_bytes = layouts, dense_bytes
    raise error


def choose_layout(
    modules: list[ExpertsModule], quant: str, dense_bytes: int, ram: int | None, what: object, freed: int = 0
) -> ExpertLayout:
    """One packed format for all layers: as asked, or for "auto" w8 if it fits, else w4. The rest as in `choose_layouts`."""

    def packed_in(name: str) -> list[ExpertLayout]:
        return [ExpertLayout(modules[0].shape, get_format(name))] * len(modules)

    candidates = [packed_in(name) for name in (("w8", "w4") if quant == "auto" else (quant,))]
    return choose_layouts(candidates, packed_in("w4"), modules[0].experts, dense_bytes, ram, what, freed)[0]
