"""What a probe is: two decoding steps of two sequences, run in both ways that must give the same bits and keep the same: queries
and keys that are turned alike, but otherwise than the model does, would attend alike as long as all are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dali.step.context import AttentionArguments, Segment, StepContext, running
from dali.step.state import SequenceState

POSITIONS = ((3, 7), (4, 8))  # of the two sequences, in each of the two steps
# A part that raises wants more than a probe gives it, or is something else than it looks like: whatever it raises, it stays as
# it was.
REFUSALS = Exception


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether values differ no more than by how sums and curves in `dtype` are rounded."""
    tolerance = 8 * torch.finfo(dtype).eps
    return torch.allclose(
        ours.float(), expected.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def wanted(forward: Any) -> dict[str, Any]:
    """What a module's forward wants beside its input, rotation and mask."""
    known: dict[str, Any] = {
        "shared_kv_states": {}
    }  # keys and values of layers that others reuse: nobody does, as `_known` of attention asks
    return {name: value for name, value in known.items() if name in inspect.signature(forward).parameters}


def probe(call: Callable[[int], Any], seen: list[AttentionArguments] | None = None) -> list[Any]:
    """What `call` gives in each step, whose number it is given, and then what the sequences keep; `seen` as in StepContext."""
    caches = [SequenceState() for _ in POSITIONS[0]]
    outputs = []
    for number in range(len(POSITIONS)):
        segments = [Segment(cache, row, 1, number, False) for row, cache in enumerate(caches)]
        with running(StepContext(segments, len(POSITIONS), native=True, seen=seen)):
            outputs.append(call(number))
    return [*outputs, *(tensor for cache in caches for tensor in cache.kept)]
