"""Fading workload with the read's cost (ours): what an expert is worth in RAM is its uses, each worth less with every step that
follows, times the seconds of reading it back.

As for an accelerator's residents (policies.cache.fading), one sum fades fast, by what the context is about, and one slowly, by
what the model always favours. A use by many tokens counts once: it saves one read.
"""

from __future__ import annotations

from collections.abc import Sequence

from dali.policies.pool import PoolPolicy

FADING = 0.85, 0.97  # a step, of the fast and of the slow sum
SLOW_SHARE = 0.4  # of the slow sum in a rank
FAR = 0.4  # of an expert's worth is lost to others that are needed a step earlier


class Policy(PoolPolicy):
    """`fading`, the default."""

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._sums = [([0.0] * experts, [0.0] * experts) for _ in range(layers)]

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        fast, slow = self._sums[layer]
        fades, stays = FADING
        fast[:] = [fades * uses + (tokens > 0) for uses, tokens in zip(fast, workload, strict=True)]
        slow[:] = [stays * uses + (tokens > 0) for uses, tokens in zip(slow, workload, strict=True)]
        cost = self.read_seconds[layer]
        return [cost * (of_late + SLOW_SHARE * ever) for of_late, ever in zip(fast, slow, strict=True)]

    def worth(self, rank: float, wait: float) -> float:
        return rank * (1 - FAR * wait)
