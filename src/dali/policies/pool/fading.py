"""Fading workload with the read's cost (ours): what an expert is worth in RAM is its uses, each worth less with every step that
follows, and how likely the layer's next step is to want it, times the seconds of reading it back.

As for an accelerator's residents (policies.cache.fading), one sum fades fast, by what the context is about, and one slowly, by
what the model always favours. A use by many tokens counts once: it saves one read.

What follows what is learnt while it runs: for each expert, how often each of its layer was wanted a step later, a running mean.
The means of the experts that a step wanted, taken together, say what the next step is likely to want. Several that point to the
same expert say more than each of them does, so the mean of them counts by how far above the expert's usual rate it is.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from dali.policies.pool import PoolPolicy

FADING = 0.85, 0.97  # a step, of the fast and of the slow sum
SLOW_SHARE = 0.3  # of the slow sum in a rank
NOW = 1.5  # uses that one in this very step is worth beside
FOLLOWS = 20.0  # uses that being wanted in the next step for certain is worth
LEAST_SHARE = 0.02  # of a running mean that the newest step makes, at least
RARE = 0.02  # a use in so many steps: lower rates than that are not told apart
FAR = 0.4  # of an expert's worth is lost to others that are needed a step earlier


class Policy(PoolPolicy):
    """`fading`, the default."""

    def __init__(self, layers: int, experts: int, slots: int, read_seconds: Sequence[float]) -> None:
        super().__init__(layers, experts, slots, read_seconds)
        self._of = [_Layer(experts) for _ in range(layers)]

    def observe(self, layer: int, workload: Sequence[int]) -> Sequence[float]:
        of, cost = self._of[layer], self.read_seconds[layer]
        used = [expert for expert, tokens in enumerate(workload) if tokens]
        of.note(used)
        ranks = [of_late + SLOW_SHARE * ever for of_late, ever in zip(of.fast, of.slow, strict=True)]
        for expert in used:
            ranks[expert] += NOW
        return [cost * (rank + FOLLOWS * likely) for rank, likely in zip(ranks, of.likely(used), strict=True)]

    def worth(self, rank: float, wait: float) -> float:
        return rank * (1 - FAR * wait)


class _Layer:
    """What a layer's steps have wanted."""

    def __init__(self, experts: int) -> None:
        self.fast, self.slow, self.uses = [0.0] * experts, [0.0] * experts, [0.0] * experts
        self._steps = 0
        self._last: list[int] = []  # what the last step wanted
        # [before][after]: the running means, in the four bytes that compiled code has for each
        self._after = [array("f", bytes(4 * experts)) for _ in range(experts)]

    def note(self, used: Sequence[int]) -> None:
        """A step has wanted those experts."""
        for before in self._last:
            share = max(LEAST_SHARE, 1 / (self.uses[before] + 1))
            stays = 1 - share
            row = self._after[before] = array("f", [stays * mean for mean in self._after[before]])
            for expert in used:
                row[expert] += share
        self.fast[:] = [FADING[0] * uses for uses in self.fast]
        self.slow[:] = [FADING[1] * uses for uses in self.slow]
        for expert in used:
            self.fast[expert] += 1
            self.slow[expert] += 1
            self.uses[expert] += 1
        self._steps += 1
        self._last = list(used)

    def likely(self, used: Sequence[int]) -> list[float]:
        """How likely the step after one that wanted those experts is to want each one, 0 to 1."""
        followed = [0.0] * len(self.uses)
        for before in used:
            followed = [mean + more for mean, more in zip(followed, self._after[before], strict=True)]
        many, likely = max(len(used), 1), []
        for total, uses in zip(followed, self.uses, strict=True):
            mean = total / many
            likely.append(min(mean * mean / (uses / self._steps + RARE), 1.0))
        return likely
