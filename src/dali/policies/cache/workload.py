"""Workload-aware replacement: DALI, arXiv 2602.03495, Algorithm 2.

An expert's score is its tokens summed over a window of forward steps. At the window's end the highest scores
that are not resident are swapped for the lowest that are, then all scores restart from 0. Fixes: the paper's
listing takes TopK on the evicted side, where the lowest are meant, and its test for the window's end is off
by one step. Ours: a pair is swapped only when the incoming score is strictly higher; ties go to the lower id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from operator import add

from dali.policies.cache import CachePolicy, Swap
from dali.policies.signals import Signals


class Policy(CachePolicy):
    """`workload`, the paper's. `window` and `swaps` are its w_size and u_size: 4 and 8 for DeepSeek-V2-Lite
    and Qwen3-30B-A3B (64 and 128 experts), 4 and 1 for Mixtral (8 experts); below 64 experts 1 swap is the
    default."""

    def __init__(
        self,
        layers: int,
        experts: int,
        capacity: int,
        seed: int = 0,
        window: int = 4,
        swaps: int | None = None,
    ) -> None:
        super().__init__(layers, experts, capacity, seed)
        self.window = window
        self.swaps = swaps if swaps is not None else 8 if experts >= 64 else 1
        self._steps = [0] * layers
        self._scores = [[0] * experts for _ in range(layers)]

    def observe(
        self,
        layer: int,
        workload: Sequence[int],
        resident: Set[int],
        fetched: Collection[int] = (),
        protected: Set[int] = frozenset(),
        signals: Signals | None = None,
    ) -> list[Swap]:
        scores = list(map(add, self._scores[layer], workload))
        self._steps[layer] += 1
        if self._steps[layer] % self.window:
            self._scores[layer] = scores
            return []
        self._scores[layer] = [0] * self.experts
        absent = set(range(self.experts)) - resident - protected
        loads = sorted(absent, key=lambda expert: (-scores[expert], expert))[: self.swaps]
        victims = sorted(resident - protected, key=lambda expert: (scores[expert], expert))
        pairs = zip(victims, loads, strict=False)
        return [Swap(evict, load) for evict, load in pairs if scores[load] > scores[evict]]
