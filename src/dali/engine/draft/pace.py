"""Whether drafts pay, and how long they should be: by measured seconds alone.

A drafted token costs a row of its step, which in a MoE model may read experts of its own. It brings what a token takes otherwise, if
it is right. So it is worth computing as long as its chance is above the ratio of both; chances are told apart by how many tokens
matched. What is lost comes from a budget: a hundredth of the time, and what earlier drafts have brought, up to the time of a few
steps. Without budget there are no drafts until it has grown again, so that text without repetitions costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 0.01  # of the time that may be lost
MOST_STEPS = 2.0  # of which the budget may have saved the time
RESUME = 1.0  # of which it must have saved it before drafts go on after it was spent
RATIO = 0.5  # a drafted row's seconds to a plain row's, until measured
PLAIN_EVERY = 32  # one step without drafts in so many, to measure what it takes
NEW = 0.2  # weight of a new measurement in an average
OUTLIER = 2.0  # a step that takes longer than so many counts as that
MOST = 7  # tokens of a draft: with the one before them as many rows as decode in one native call
KINDS = (2, 3, 4, 6, 9, 16)  # fewest matched tokens of those that share a chance


class Pace:
    """A pure rule over numbers: the same ones give the same drafts."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step without drafts, by how many sequences
        self._drafted: dict[int, int] = {}  # steps since then, by the same
        self._ratios: dict[int, float] = {}  # a drafted row's seconds to a plain row's, by the same
        self._chances = [1 - 1 / (matched + 1) for matched in KINDS]  # that a drafted token is right
        self._budget: float | None = None  # seconds; None until a step was measured
        self._on = True

    def lengths(self, matched: Sequence[int]) -> list[int]:
        """How many tokens are worth drafting for each sequence, of which so many matched; 0: it has no draft."""
        sequences = len(matched)
        plain = self._plain.get(sequences)
        if plain is None or self._budget is None or self._drafted[sequences] >= PLAIN_EVERY:
            return [0] * sequences  # this step shall measure what one takes without
        if not self._on:
            return [0] * sequences
        ratio = self._ratio(sequences)
        lengths = [self._length(self._chances[_kind(one)], ratio) if one else 0 for one in matched]
        if not any(lengths) and self._budget >= MOST_STEPS * plain:  # a trial: chances and times change
            lengths = [int(one > 0) for one in matched]
        return lengths

    def note_step(self, sequences: int, drafted: int, accepted: int, seconds: float) -> None:
        """What a step without prompts took, with so many tokens drafted in all, and so many of them right."""
        plain = self._plain.get(sequences)
        if plain is not None:
            seconds = min(seconds, OUTLIER * (1 + drafted / sequences) * plain)
        if not drafted:
            plain = seconds if plain is None else plain + NEW * (seconds - plain)
            self._plain[sequences], self._drafted[sequences] = plain, 0
            self._spend(-SHARE * seconds, plain)
            return
        if plain is None:
            return
        self._drafted[sequences] += 1
        lost = seconds - plain
        ratio = self._ratio(sequences)
        self._ratios[sequences] = ratio + NEW * (max(lost, 0) * sequences / (drafted * max(plain, 1e-9)) - ratio)
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
        while reached > ratio and length < MOST:
            length, reached = length + 1, reached * chance
        return length

    def _spend(self, lost: float, plain: float) -> None:
        most = MOST_STEPS * plain
        self._budget = most if self._budget is None else min(self._budget - lost, most)
        self._on = self._budget >= (0 if self._on else RESUME * plain)


def _kind(matched: int) -> int:
    return sum(matched >= fewest for fewest in KINDS[1:])
