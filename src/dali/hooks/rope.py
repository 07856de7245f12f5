"""Rotary embeddings whose frequencies depend on how long the sequence is ("longrope", Phi-3.5-MoE).

transformers picks the short or the long frequencies from the largest position of the whole call. In a flattened step that
would make a sequence's tokens depend on its neighbours, and in a chunked prefill on the chunk. So a step holds sequences
of one regime only (see Scheduler), and the rotary module is shown the step's longest sequence as one more position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dali.step.context import current_step


def limits(model: nn.Module) -> tuple[int, ...]:
    """Lengths, ascending, beyond which a sequence's tokens are rotated by other frequencies; none where length does not matter.
    The kinds of a model's layers may have limits of their own."""
    return tuple(sorted({limit for _, limit in _longropes(model)}))


def bind_to_step(model: nn.Module) -> None:
    """Make length-dependent rotary modules look at the whole sequence instead of the chunk at hand."""
    for module in {id(module): module for module, _ in _longropes(model)}.values():
        module.forward = _with_witness(module.forward)


def _longropes(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Rotary modules that switch frequencies, each with the length up to which it uses the short ones. Some have one kind of
    rotation for each kind of layer, and then parameters for each."""
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        config: Any = getattr(module, "config", None)
        if kinds == "longrope":
            yield module, int(config.rope_parameters["original_max_position_embeddings"])
        elif isinstance(kinds, dict):
            for layers, kind in kinds.items():
                if kind == "longrope":
                    yield module, int(config.rope_parameters[layers]["original_max_position_embeddings"])


def _with_witness(forward: Any) -> Any:
    def call(x: Tensor, position_ids: Tensor, *arguments: Any, **keywords: Any) -> Any:
        step = current_step()
        if step is None:
            return forward(x, position_ids, *arguments, **keywords)
        witness = position_ids.new_full((position_ids.shape[0], 1), step.longest - 1)
        embeddings = forward(x, torch.cat([position_ids, witness], dim=1), *arguments, **keywords)
        return tuple(e[:, :-1] for e in embeddings) if isinstance(embeddings, tuple) else embeddings[:, :-1]

    return call
