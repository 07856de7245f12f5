"""Whether drafts go on, on steps of given seconds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dali.engine.draft.pace import MOST_STEPS, PLAIN_EVERY, SHARE, Pace
from dali.step.context import MOST_ROWS

MATCHED = 4


def play(
    pace: Pace, steps: int, right: float, row: float, sequences: int = 1, plain: float = 1.0, seed: int = 0
) -> tuple[float, int, int]:
    """Seconds, tokens and drafted tokens of so many steps, where a drafted token is right with a chance of `right` and costs
    `row` of what a token costs otherwise."""
    draw, seconds, tokens, all_drafted = random.Random(seed), 0.0, 0, 0
    for _ in range(steps):
        drafted = accepted = 0
        for length in pace.lengths([MATCHED] * sequences):
            good = 0
            while good < length and draw.random() < right:
                good += 1
            pace.note_draft(MATCHED, length, good)
            drafted, accepted = drafted + length, accepted + good
        took = plain * (1 + row * drafted / sequences)
        pace.note_step(sequences, drafted, accepted, took)
        seconds, tokens, all_drafted = seconds + took, tokens + sequences + accepted, all_drafted + drafted
    return seconds, tokens, all_drafted


@pytest.mark.parametrize("sequences", [1, 5])
def test_what_is_right_and_cheap_is_drafted_at_full_length(sequences):
    seconds, tokens, drafted = play(Pace(), 1000, 1.0, 0.1, sequences)
    steps = 1000 - 1000 // PLAIN_EVERY - 10
    assert drafted >= steps * (MOST_ROWS - sequences)
    assert tokens / seconds > 1.5 * sequences


@pytest.mark.parametrize("sequences", [1, 5])
@pytest.mark.parametrize(
    ("right", "row"),
    [(0.0, 0.1), (0.0, 1.5), (0.3, 0.5), (0.6, 0.9), (0.9, 1.0), (0.5, 0.5)],
)
def test_what_does_not_pay_costs_a_hundredth_and_a_few_steps(right, row, sequences):
    for seed in range(3):
        seconds, tokens, _ = play(Pace(), 2000, right, row, sequences, seed=seed)
        without = tokens / sequences
        most_lost = SHARE * seconds + 2 * MOST_STEPS + MOST_ROWS * row  # the last draft may exceed the budget
        assert seconds - without <= most_lost


def test_without_matches_nothing_is_drafted():
    pace = Pace()
    for _ in range(10):
        assert pace.lengths([0, 0]) == [0, 0]
        pace.note_step(2, 0, 0, 1.0)


def test_drafts_begin_again_when_text_changes():
    pace = Pace()
    play(pace, 300, 0.0, 0.5)
    seconds, tokens, _ = play(pace, 1000, 1.0, 0.2)
    assert tokens / seconds > 2


def test_drafts_end_when_their_rows_become_dear():
    pace = Pace()
    play(pace, 300, 0.95, 0.1)
    seconds, tokens, _ = play(pace, 1000, 0.95, 1.2)
    assert tokens / seconds > 0.97


def test_a_step_that_takes_forever_changes_little():
    pace = Pace()
    play(pace, 100, 0.9, 0.2)
    pace.note_step(1, 7, 7, 1000.0)
    _, _, drafted = play(pace, 500, 0.9, 0.2)
    assert drafted > 300


def test_longer_drafts_are_made_behind_longer_matches():
    """Short matches are right now and then, long ones nearly always."""
    pace, draw = Pace(), random.Random(0)
    lengths: dict[int, int] = {2: 0, 12: 0}
    for _ in range(400):
        matched = draw.choice((2, 12))
        (length,) = pace.lengths([matched])
        good = 0
        while good < length and draw.random() < (0.95 if matched == 12 else 0.2):
            good += 1
        pace.note_draft(matched, length, good)
        pace.note_step(1, length, good, 1 + 0.3 * length)
        lengths[matched] += length
    assert lengths[12] > 10 * lengths[2]


@pytest.mark.parametrize("seconds", [lambda draw: draw.uniform(0.5, 1.5), lambda draw: 0.0])
def test_the_same_numbers_give_the_same_drafts(seconds: Callable[[random.Random], float]):
    def lengths() -> list[int]:
        pace, draw, found = Pace(), random.Random(1), []
        for _ in range(200):
            (length,) = pace.lengths([draw.choice((0, 2, 5))])
            pace.note_draft(5, length, length // 2)
            pace.note_step(1, length, length // 2, seconds(draw))
            found.append(length)
        return found

    assert lengths() == lengths()
