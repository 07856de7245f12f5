"""How an accelerator's memory is split, by times worked by hand: one layer of four experts of a byte, two of them a token."""

import pytest

from dali.hardware.cost import ExpertCosts
from dali.policies.once.vram import MOST, Experts, Split, split_as_asked, split_by_time

NO_COPY = 100.0  # seconds of a copy, which then never is in time


def experts(cpu=3.0, gpu=1.0, dense=lambda tokens: 0.0):
    """Seconds by tokens are in proportion; nothing else takes time."""
    seconds = [[each * tokens for tokens in range(200)] for each in (cpu, gpu)]
    return Experts(1, 4, 2, 1, ExpertCosts(*seconds, NO_COPY, NO_COPY, launch=0.0), dense)


@pytest.mark.parametrize(
    ("room", "most", "split"),
    [
        (6, 1, Split(5, 1, 1)),
        (6, 2, Split(4, 2, 2)),  # all experts are there still
        (6, 3, Split(4, 2, 2)),  # two residents of four: a token takes 20/6 and not 2
        (5, 4, Split(4, 1, 1)),
        (1, 4, Split(0, 1, 1)),
    ],
)
def test_one_that_is_alone_does_not_pay_for_others(room, most, split):
    assert split_by_time(room, 1, most, experts()) == split


def test_what_experts_are_no_faster_by_is_for_sequences():
    slow = experts(gpu=1000.0)  # the CPU computes all, wherever they are
    assert split_by_time(6, 1, 5, slow) == Split(1, 5, 5)
    assert split_by_time(6, 2, 5, slow) == Split(0, 6, 3)
    assert split_by_time(1000, 1, 1000, slow).sequences == MOST


def test_a_few_percent_are_given_up_where_all_together_gain_by_it():
    # A token takes 102 with all four there and 103.3 with two, less than a twentieth more; the dense part is for all at once.
    assert split_by_time(6, 1, 3, experts(dense=lambda tokens: 100.0)) == Split(3, 3, 3)
    # And 31.33 of 30: 4 %.
    assert split_by_time(6, 1, 3, experts(dense=lambda tokens: 28.0)).sequences == 3


def test_more_is_not_given_up_however_much_all_together_would_gain():
    # 22 with all four there and 23.33 with two, 6 %, though three together would have theirs in 29 and two have it in 23.
    assert split_by_time(6, 1, 3, experts(dense=lambda tokens: 20.0)) == Split(4, 2, 2)


def test_nothing_is_given_up_where_all_together_gain_nothing():
    # Twice as long for two: 102 a token alone. Two tokens' 3 experts are all there, and the CPU takes one: 203 for both. Of three
    # tokens' 4 two are there, and the CPU takes 9 for the others: 309.
    assert split_by_time(6, 1, 3, experts(dense=lambda tokens: 100.0 * tokens)) == Split(4, 2, 2)


@pytest.mark.parametrize(
    ("asked", "most", "split"),
    [(2, 4, Split(2, 6, 2)), (2, 1, Split(2, 3, 1)), (0, 9, Split(0, 9, 3)), (9, 4, Split(7, 3, 1))],
)
def test_who_says_what_experts_have_leaves_the_rest_to_sequences(asked, most, split):
    assert split_as_asked(10, 3, most, asked) == split
