"""Drafts whose tokens and lengths a test chooses."""

from __future__ import annotations

import random

from dali.engine.draft import drafts
from dali.engine.draft.ngrams import Draft
from dali.engine.sequence import Sequence


class Told:
    """In the place of a sequence's n-grams: knows what will come, and spoils some of it."""

    def __init__(self, sequence: Sequence, right: list[int], seed: int, spoilt: float = 0.6) -> None:
        self._sequence, self._right, self._draw, self._spoilt = sequence, right, random.Random(seed), spoilt

    def recalls(self) -> bool:
        return True

    def propose(self, most: int) -> Draft:
        begin = len(self._sequence.generated)
        tokens = self._right[begin : begin + max(self._draw.randint(-1, most), 0)]
        if tokens and self._draw.random() < self._spoilt:
            tokens[self._draw.randrange(len(tokens))] = 3
        return Draft(4, tokens)


class Always:
    """In the place of a pace: all that is proposed."""

    def ready(self, sequences: int) -> bool:
        return True

    def lengths(self, matched: list[int]) -> list[int]:
        return [drafts.Drafts.most if one else 0 for one in matched]

    def note_draft(self, *numbers: int) -> None:
        pass

    note_step = note_draft
