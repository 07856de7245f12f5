"""Drafts are what followed the longest of the latest matches."""

from __future__ import annotations

import random

import pytest

from dali.engine.draft.ngrams import CANDIDATES, MOST_MATCHED, Draft, NGrams

NOTHING = Draft(0, [])


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        ([], 3, NOTHING),
        ([1, 2], 3, NOTHING),
        ([1, 2, 3, 4], 3, NOTHING),
        ([1, 2, 3, 9, 1, 2], 3, Draft(2, [3, 9, 1])),
        ([1, 2, 3, 9, 1, 2], 0, NOTHING),
        ([5, 1, 2, 3, 5, 1, 2, 3], 2, Draft(4, [5, 1])),
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, Draft(3, [3])),  # longer before later
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, Draft(2, [4])),  # later where both are as long
        ([4, 4, 4], 4, Draft(2, [4, 4, 4, 4])),  # a repetition of itself
        ([1, 2, 3, 1, 2, 3, 1, 2], 5, Draft(5, [3, 1, 2, 3, 1])),
    ],
)
def test_what_followed_the_longest_match_is_proposed(tokens, most, expected):
    assert NGrams(tokens).propose(most) == expected


def by_looking_everywhere(tokens: list[int], most: int) -> Draft:
    """The same without an index."""
    end, found = len(tokens), []
    for place in range(end - 1, 1, -1):
        matched = 0
        while matched < min(place, MOST_MATCHED) and tokens[place - 1 - matched] == tokens[end - 1 - matched]:
            matched += 1
        if matched >= 2:
            found.append((matched, place))
    found = found[:CANDIDATES]
    if not found or most < 1:
        return NOTHING
    matched, place = max(found)
    draft = list(tokens)
    for _ in range(most):
        draft.append(draft[place + len(draft) - end])
    return Draft(matched, draft[end:])


def test_an_index_that_grows_finds_what_looking_everywhere_finds():
    draw, tokens = random.Random(0), list[int]()
    ngrams, matches = NGrams(tokens), 0
    for _ in range(600):
        tokens += draw.choices(range(4), k=draw.randint(1, 3))
        most = draw.randint(0, 6)
        expected = by_looking_everywhere(tokens, most)
        assert ngrams.propose(most) == expected
        matches += expected.matched > 4
    assert matches > 30
