"""Reading experts of the next layer from disk before their routing is known: which ones, how many, and whether at all.

Live runs (src/native/disk/read_ahead.h) and replays go by this one rule. Of what the next layer is foreseen to choose, those
that are not in RAM are read, the likeliest first and as many as the disk has time for: one that is half done when the layer
begins is soon enough, as it saves then, where it is needed, what it costs others, where it is not. Hence they have to be needed
more often than not, which is known before the first is read: what is foreseen is held to what comes. Whether it pays is the
trial's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dali.policies.trial import Trial

LIKELY = 0.5  # of the absent experts foreseen of late are to have been needed, at least
MEMORY = 0.98  # a layer, of what is known of that
UNKNOWN = 8.0  # experts, taken to have been foreseen in vain at first


def ranked(ids: Iterable[Sequence[int]], there: Collection[int]) -> list[int]:
    """The experts of `ids` [tokens][top_k], of each token the likeliest first, that are not `there`: the likeliest first."""
    votes: dict[int, int] = {}
    for chosen in ids:
        for place, expert in enumerate(chosen):
            votes[expert] = votes.get(expert, 0) + len(chosen) - place
    return sorted([expert for expert in votes if expert not in there], key=lambda one: (-votes[one], one))


class ReadAhead:
    """`on` says whether to foresee anything in the step that has begun."""

    def __init__(self) -> None:
        self._trial = Trial()
        self._foreseen: dict[int, Sequence[int]] = {}  # by layer
        self._right, self._told = 0.0, UNKNOWN  # of late

    @property
    def on(self) -> bool:
        return self._trial.on

    def step(self, seconds: float, waited: float, wanted: int) -> None:
        """A step begins; as Trial.step."""
        self._trial.step(seconds, waited, wanted)

    def choose(self, layer: int, foreseen: Sequence[int], idle: float, read: float) -> Sequence[int]:
        """What to read, in this order, of the absent experts that a layer is `foreseen` to want, the likeliest first. `idle`:
        seconds the disk has before they are known; `read`: of one read."""
        self._foreseen[layer] = foreseen
        return foreseen[: int(idle / read + 0.5)] if self._right >= LIKELY * self._told else ()

    def settle(self, layer: int, needed: Collection[int]) -> None:
        """A layer's experts are known."""
        if foreseen := self._foreseen.pop(layer, ()):
            self._right = MEMORY * self._right + sum([expert in needed for expert in foreseen])
            self._told = MEMORY * self._told + len(foreseen)
