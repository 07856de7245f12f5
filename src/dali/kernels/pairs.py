"""The (token, choice) pairs of a layer's step by expert; a pair's number is token * top_k + choice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dali import compiled
from dali.kernels import native


def count_pairs(ids: Tensor, experts: int) -> list[int]:
    """The workload: how many of ids, int64 [tokens, top_k] on the CPU, are each of `experts` experts."""
    if compiled.in_use is not None:
        return native.count_pairs(ids, experts)
    workload: list[int] = np.bincount(ids.numpy().reshape(-1), minlength=experts).tolist()
    return workload


def order_pairs(ids: Tensor, workload: Sequence[int], order: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The pairs of `order`'s experts, which are all that have any, one after another and ascending within an expert, int64
    [tokens * top_k]; and where each expert's begin, and the end."""
    if compiled.in_use is not None:
        return native.order_pairs(ids, len(workload), order)
    turns = np.zeros(len(workload), dtype=np.int16)
    turns[order] = np.arange(len(order), dtype=np.int16)
    pairs = turns[ids.numpy().reshape(-1)].argsort(kind="stable")
    return torch.from_numpy(pairs), [0, *accumulate(workload[expert] for expert in order)]


def pairs_by_expert(ids: Tensor, experts: int) -> tuple[list[int], Tensor, list[int]]:
    """The experts that have any pairs, ascending; then as order_pairs()."""
    workload = count_pairs(ids, experts)
    active = [expert for expert, tokens in enumerate(workload) if tokens]
    return active, *order_pairs(ids, workload, active)
