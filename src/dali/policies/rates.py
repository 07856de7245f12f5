"""Which experts leave memory for others from a disk: those that cost the least to read again, by how often they are used.

One share of a layer's tokens fades fast, by what the context is about, and one slowly, by what the model always favours. A share
is of the tokens that were seen, each worth less with every step that follows, so that layers compare with one another at any
time, after a long prompt as after a single token. All layers' experts take part: a layer whose tokens are spread widely leaves
its slots to one whose are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

FADING = 0.85, 0.97  # a step, of the fast and of the slow share
SLOW_SHARE = 2.0  # what the slow one counts for; see policies/cache/fading.py, whose weights these are


class Rates:
    """How often each expert of each layer is used."""

    def __init__(self, layers: int, experts: int) -> None:
        self._sums = [[[0.0] * experts for _ in FADING] for _ in range(layers)]
        self._totals = [[0.0 for _ in FADING] for _ in range(layers)]
        self._worth = [[1.0 for _ in FADING] for _ in range(layers)]  # a token's: it grows where sums fade

    def note(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        """A layer's step: `tokens[i]` went to `experts[i]`, and none to the others."""
        for place, fading in enumerate(FADING):
            sums = self._sums[layer][place]
            self._worth[layer][place] /= fading
            if self._worth[layer][place] > 1e100:
                sums[:] = [one / self._worth[layer][place] for one in sums]
                self._totals[layer][place] /= self._worth[layer][place]
                self._worth[layer][place] = 1.0
            for expert, count in zip(experts, tokens, strict=True):
                sums[expert] += count * self._worth[layer][place]
                self._totals[layer][place] += count * self._worth[layer][place]

    def of(self, layer: int, expert: int) -> float:
        """The weighted share of the layer's tokens that went to the expert; 0 before the layer's first step."""
        (fast, slow), (fast_total, slow_total) = self._sums[layer], self._totals[layer]
        return fast[expert] / fast_total + SLOW_SHARE * (slow[expert] / slow_total) if fast_total else 0.0


def victims(
    rates: Rates, held: Iterable[tuple[int, int]], cost: Sequence[float], count: int
) -> list[tuple[int, int]]:
    """The `count` of the (layer, expert) pairs `held` to give up, the first one first. `cost`: of reading an expert of each
    layer."""
    return sorted(held, key=lambda pair: (rates.of(*pair) * cost[pair[0]], pair))[:count]
