"""What a layer's step of the executor has between its parts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from dali.devices import Buffer
from dali.kernels.reference import reduce_choices


@dataclass(slots=True)
class Step:
    """One layer's step: its workload, (token, choice) pairs in the order of the plan (the CPU's first) and where each expert's
    begin, input and the rows of its outputs."""

    layer: int
    workload: list[int]
    pairs: Tensor
    offsets: list[int]
    x: Buffer
    rows: Buffer
    staged: Staged | None = None
    computed: int = 0  # of the CPU's experts, those that are queued
    turn: int = 0  # of all, the next one that is launched
    recyclable: deque[int] = field(default_factory=deque)  # in scratch slots, the oldest launch first


@dataclass(slots=True)
class Staged:
    """The CPU's outputs on their way up: `rows.tensor[i]` is the row of (token, choice) pair `pairs[i]`."""

    pairs: Tensor
    below: Buffer  # what they compute from, on the host
    packed: Buffer  # on the host
    rows: Buffer  # on the accelerator


def join(rows: Tensor, staged: Staged | None, weights: Tensor, out: Tensor) -> None:
    """Put the CPU's rows among the accelerator's and sum over choices, in their order."""
    if staged is not None:
        rows[staged.pairs] = staged.rows.tensor
    out.copy_(reduce_choices(rows, weights))
