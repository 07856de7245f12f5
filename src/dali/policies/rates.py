"""Which experts leave RAM for others from a disk: by their uses, each worth less with every step that follows, times what it
costs to read one again.

One sum of uses fades fast, by what the context is about, and one slowly, by what the model always favours, as for an
accelerator's residents (policies/cache/fading.py). A use by many tokens counts once: it saves one read. All layers' experts take
part, and those whose layer's next step is farther off are worth less.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

FADING = 0.85, 0.97  # a step, of the fast and of the slow sum
SLOW_SHARE = 0.4  # of the slow sum in a rank
FAR = 0.4  # of an expert's worth is lost to others that are needed a step earlier


class Rates:
    """What experts are worth. `costs`: of reading an expert of each layer; `experts`: of each layer."""

    def __init__(self, costs: Sequence[float], experts: int) -> None:
        self._costs = costs
        self._sums = [[[0.0] * experts for _ in FADING] for _ in costs]
        self._turn = 0  # the layer of the last step

    def note(self, layer: int, experts: Collection[int]) -> None:
        """A layer's step has wanted those experts."""
        self._turn = layer
        for place, fading in enumerate(FADING):
            sums = self._sums[layer][place]
            sums[:] = [fading * uses + (expert in experts) for expert, uses in enumerate(sums)]

    def worth(self, layer: int, expert: int) -> float:
        """What keeping the expert is worth, in the unit of `costs`."""
        layers, (fast, slow) = len(self._costs), self._sums[layer]
        wait = ((layer - self._turn - 1) % layers + 1) / layers
        return self._costs[layer] * (fast[expert] + SLOW_SHARE * slow[expert]) * (1 - FAR * wait)


def victims(rates: Rates, held: Iterable[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The `count` of the (layer, expert) pairs `held` to give up, the first one first: the least worth, ties to the lower
    pair."""
    return sorted(held, key=lambda pair: (rates.worth(*pair), pair))[:count]
