"""What is kept of a sequence beyond its life: copies of its keys and values, and of what recurrent layers were at a place.

All of it lies in host memory and is never changed, so any number of sequences may go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dali.step.recurrent import RecurrentState

ALIGNMENT = 64  # of each tensor in a buffer or a file


class KeptTokens(NamedTuple):
    """A layer's keys and values of some tokens, [heads, tokens, width] each; `window`: the layer's."""

    layer: int
    window: int | None
    keys: Tensor
    values: Tensor


class KeptState(NamedTuple):
    """What a recurrent layer was at a place."""

    layer: int
    kind: type[RecurrentState]
    tensor: Tensor


@dataclass(frozen=True)
class Kept:
    """`tokens`: of each layer with keys and values, those of one stretch of tokens; `states`: of each recurrent layer, what it
    was at the stretch's end, if that is kept at all."""

    tokens: tuple[KeptTokens, ...] = ()
    states: tuple[KeptState, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, in one order."""
        return [part for each in self.tokens for part in (each.keys, each.values)] + [
            each.tensor for each in self.states
        ]

    @cached_property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def gather(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors in one buffer in host memory: many small pieces would never give it back."""
    buffer = torch.empty(sum(aligned(tensor.nbytes) for tensor in tensors), dtype=torch.uint8)
    copies, begin = [], 0
    for tensor in tensors:
        copy = buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor))
        begin += aligned(tensor.nbytes)
    return copies
