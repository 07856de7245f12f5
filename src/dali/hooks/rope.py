"""Rotary embeddings whose frequencies depend on how long the sequence is ("longrope", Phi-3.5-MoE).

transformers picks the short or the long frequencies from the largest position of the whole call. In a flattened step that
would make a sequence's tokens depend on its neighbours, and in a chunked prefill on the chunk. So a step holds sequences
of one regime only (see Scheduler), and the rotary module is shown the step's longest sequence as one more position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dali.step.context import current_step


def short_limit(config: Any) -> int | None:
    """Tokens up to which a sequence uses the short frequencies; None where length does not matter."""
    rope = getattr(config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def bind_to_step(model: nn.Module) -> None:
    """Make length-dependent rotary modules look at the whole sequence instead of the chunk at hand."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            module.forward = _with_witness(module.forward)


def _with_witness(forward: Any) -> Any:
    def call(x: Tensor, position_ids: Tensor, **kwargs: Any) -> Any:
        step = current_step()
        if step is None:
            return forward(x, position_ids, **kwargs)
        witness = position_ids.new_full((position_ids.shape[0], 1), step.longest - 1)
        embeddings = forward(x, torch.cat([position_ids, witness], dim=1), **kwargs)
        return tuple(e[:, :-1] for e in embeddings) if isinstance(embeddings, tuple) else embeddings[:, :-1]

    return call
