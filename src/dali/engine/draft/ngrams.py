"""Drafts looked up in the sequence itself: what followed the last time that it said the same.

Published as prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding); llama.cpp's `lookup` does likewise. Here
every pair of neighbouring tokens is noted once, so that a look-up takes as long in a long sequence as in a short one.
"""

from __future__ import annotations

from typing import NamedTuple

CANDIDATES = 8  # places that are looked at, the latest ones
MOST_MATCHED = 16  # tokens back that are compared; longer matches are as good


class Draft(NamedTuple):
    """`tokens` that may come next, as they did where the last `matched` tokens stood before; 0 and none: nowhere."""

    matched: int
    tokens: list[int]


NONE = Draft(0, [])


class NGrams:
    """Of one sequence, whose `tokens` grow."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._latest: dict[tuple[int, int], int] = {}  # of a pair: the place behind its latest one
        self._before = [0, 0]  # of each place: the one before it with the same pair in front; 0: none

    def recalls(self) -> bool:
        """Whether the last two tokens have stood before."""
        self._note()
        tokens = self._tokens
        return len(tokens) > 1 and (tokens[-2], tokens[-1]) in self._latest

    def propose(self, most: int) -> Draft:
        """At most so many tokens."""
        self._note()
        tokens, end = self._tokens, len(self._tokens)
        if end < 3 or most < 1:
            return NONE
        place, best, matched = self._latest.get((tokens[-2], tokens[-1]), 0), 0, 0
        for _ in range(CANDIDATES):
            if not place:
                break
            found = self._matched(place)
            if found > matched:
                best, matched = place, found
            place = self._before[place]
        if not best:
            return NONE
        # Where the match reaches the end, what follows is its own repetition.
        draft = tokens[best : best + most]
        period = end - best
        while len(draft) < most:
            draft.append(draft[-period])
        return Draft(matched, draft)

    def _note(self) -> None:
        """Take in tokens since the last look-up, but for the last pair, which nothing follows yet."""
        tokens, latest, before = self._tokens, self._latest, self._before
        for place in range(len(before), len(tokens)):
            pair = tokens[place - 2], tokens[place - 1]
            before.append(latest.get(pair, 0))
            latest[pair] = place

    def _matched(self, place: int) -> int:
        """How many tokens before `place` are those at the end."""
        tokens, end = self._tokens, len(self._tokens)
        most = min(place, MOST_MATCHED)
        for back in range(1, most + 1):
            if tokens[place - back] != tokens[end - back]:
                return back - 1
        return most
