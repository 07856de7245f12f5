"""Whether drafts pay, and how long they should be: by measured seconds alone.

A drafted token costs a row of its step, which in a MoE model may read experts of its own. If it is right, it brings what a token
takes otherwise. So it is worth computing as long as its chance is above the ratio of both; chances are told apart by how many
tokens matched. What is lost comes from a budget: half a hundredth of the time, and what earlier drafts have brought, up to the
time of a few steps. Once it is spent there are no drafts until it has grown again: plain text loses next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dali.step.context import MOST_ROWS  # of a step with drafts: beyond, a further row is no bargain

SHARE = 0.005  # of the time that may be lost
MOST_STEPS = 2.0  # of which the budget may have saved the time
RESUME = 1.0  # of which it has the time at first, and must have it before drafts go on after it was spent
RATIO = 0.5  # a drafted row's seconds to a plain row's, until measured
PLAIN_EVERY = 32  # one step without drafts in so many, to measure what it takes
NEW = 0.2  # weight of a new measurement in an average
OUTLIER = 2.0  # a step that takes longer than so many times its rows counts as that
# Fewest matched tokens of those that share a chance that a drafted token is right, and the chance until it was measured.
KINDS = {2: 0.3, 3: 0.45, 4: 0.6, 6: 0.75, 9: 0.85, 16: 0.95}


class Pace:
    """A pure rule over numbers: the same ones give the same drafts."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step without drafts, by how many sequences
        self._drafted: dict[int, int] = {}  # steps since then, by the same
        self._ratios: dict[int, float] = {}  # a drafted row's seconds to a plain row's, by the same
        self._chances = list(KINDS.values())
        self._budget = 0.0  # seconds
        self._on = True

    def ready(self, sequences: int) -> bool:
        """Whether so many sequences may have drafts now: not without budget, and not where the step is to be measured."""
        return self._on and self._drafted.get(sequences, PLAIN_EVERY) < PLAIN_EVERY and sequences < MOST_ROWS

    def lengths(self, matched: Sequence[int]) -> list[int]:
        """How many tokens are worth drafting for each sequence, of which so many matched; 0: it has no draft."""
        sequences, best = len(matched), max(matched)
        if not best or not self.ready(sequences):
            return [0] * sequences
        ratio = self._ratio(sequences)
        lengths = [self._length(self._chances[_kind(one)], ratio) if one else 0 for one in matched]
        if not any(lengths) and self._budget >= MOST_STEPS * self._plain[sequences]:
            lengths = [int(one == best) for one in matched]  # a trial: chances and times change
        return _fitting(lengths, MOST_ROWS - sequences)

    def note_step(self, sequences: int, drafted: int, accepted: int, seconds: float) -> None:
        """What a step without prompts took, with so many tokens drafted in all, and so many of them right."""
        plain = self._plain.get(sequences)
        if plain is not None:
            seconds = min(seconds, OUTLIER * (1 + drafted / sequences) * plain)
        if not drafted:
            if not self._plain:
                self._budget = RESUME * seconds
            plain = seconds if plain is None else plain + NEW * (seconds - plain)
            self._plain[sequences], self._drafted[sequences] = plain, 0
            self._spend(-SHARE * seconds, plain)
            return
        if plain is None:
            return
        self._drafted[sequences] += 1
        lost = seconds - plain
        ratio = self._ratio(sequences)
        self._ratios[sequences] = ratio + NEW * (
            max(lost, 0) * sequences / (drafted * max(plain, 1e-9)) - ratio
        )
        self._spend(lost - accepted * plain / sequences - SHARE * seconds, plain)

    def note_draft(self, matched: int, drafted: int, accepted: int) -> None:
        """How many of the tokens drafted behind so many matched ones were right."""
        kind = _kind(matched)
        for right in [1] * accepted + [0] * (accepted < drafted):
            self._chances[kind] += NEW * (right - self._chances[kind])

    def _ratio(self, sequences: int) -> float:
        if sequences in self._ratios or not self._ratios:
            return self._ratios.get(sequences, RATIO)
        return self._ratios[min(self._ratios, key=lambda known: abs(known - sequences))]

    @staticmethod
    def _length(chance: float, ratio: float) -> int:
        """How many tokens one after another are right with more than that chance."""
        length, reached = 0, chance
        while reached > ratio and length < MOST_ROWS:
            length, reached = length + 1, reached * chance
        return length

    def _spend(self, lost: float, plain: float) -> None:
        most = MOST_STEPS * plain
        # No debts: one step that took long for another reason must not end drafts for good.
        self._budget = max(min(self._budget - lost, most), 0.0)
        self._on = self._budget > 0 if self._on else self._budget >= RESUME * plain


def _kind(matched: int) -> int:
    return sum(matched >= fewest for fewest in KINDS) - 1


def _fitting(lengths: list[int], room: int) -> list[int]:
    """No more in all than `room`: each gets as many as others, if it can use them."""
    given = [0] * len(lengths)
    while room > 0 and given != lengths:
        for at, length in enumerate(lengths):
            if given[at] < length and room > 0:
                given[at] += 1
                room -= 1
    return given
