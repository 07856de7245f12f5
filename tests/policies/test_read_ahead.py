"""What is read ahead, by hand; and that compiled code reads the same."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.read_ahead import UNKNOWN, ReadAhead, ranked

compiled = pytest.mark.skipif(library is None, reason="the kernels were not compiled")


def trusted() -> ReadAhead:
    """Whose guesses were right so far."""
    one = ReadAhead()
    for _ in range(10):
        one.choose(0, [1, 2], 0.0, 1.0)
        one.settle(0, [1, 2, 3])
    return one


def test_the_likeliest_of_a_token_and_those_of_several_come_first():
    assert ranked([[4, 1, 3]], []) == [4, 1, 3]
    assert ranked([[4, 1, 3]], {1}) == [4, 3]
    assert ranked([[4, 1, 3], [1, 0, 5]], [3]) == [1, 4, 0, 5]  # 2 + 3 votes, 3, 2, 1
    assert ranked([], [3]) == []


def test_no_more_is_read_than_the_disk_has_time_for():
    one = trusted()
    assert one.choose(1, [2, 1, 7], idle=25.0, read=10.0) == [2, 1, 7]
    assert one.choose(1, [2, 1, 7], idle=24.0, read=10.0) == [2, 1]
    assert one.choose(1, [2, 1, 7], idle=5.0, read=10.0) == [2]  # half done is soon enough
    assert list(one.choose(1, [2, 1, 7], idle=4.0, read=10.0)) == []


def test_nothing_is_read_before_guesses_were_seen_to_be_right():
    one = ReadAhead()
    seen = []
    for _ in range(8):
        seen.append(len(one.choose(1, [3, 5], 20.0, 10.0)))
        one.settle(1, [3, 4, 5])
    # Each step two guesses are right: after so many, half of all, and of those taken to have been wrong.
    assert seen == [0] * (int(UNKNOWN) // 2) + [2] * (8 - int(UNKNOWN) // 2)


def test_what_was_seldom_needed_of_late_is_not_read():
    one = trusted()

    def read(needed: list[int]) -> int:
        count = len(one.choose(1, [0, 1, 2], 100.0, 10.0))
        one.settle(1, needed)
        return count

    seldom = [read([2, 7]) for _ in range(60)]  # one of three
    assert seldom[0] == 3
    assert seldom[-1] == 0
    often = [read([0, 2, 7]) for _ in range(60)]  # two of three
    assert often[-1] == 3


def test_a_layer_of_which_nothing_was_foreseen_tells_nothing():
    one = trusted()
    for _ in range(500):
        one.settle(2, [1, 2])
        one.choose(2, [], 10.0, 10.0)
        one.settle(2, [1, 2])
    assert one.choose(2, [5], 10.0, 10.0) == [5]


@compiled
def test_compiled_code_ranks_alike():
    chance = random.Random(1)
    for _ in range(300):
        experts, top_k = chance.randint(4, 12), chance.randint(1, 4)
        ids = [chance.sample(range(experts), top_k) for _ in range(chance.randint(0, 5))]
        there = {expert for expert in range(experts) if chance.random() < 0.4}
        flat = [expert for chosen in ids for expert in chosen]
        found = library.ranked(flat, top_k, [expert in there for expert in range(experts)])
        assert found == ranked(ids, there)


@compiled
def test_compiled_code_chooses_alike():
    chance, ours, theirs, read = random.Random(2), ReadAhead(), library.ReadAhead(6), 0
    for step in range(3000):
        layer = chance.randrange(6)
        foreseen = chance.sample(range(12), chance.randint(0, 4))
        idle, seconds = chance.random() * 5, chance.random() + 0.01
        chosen = ours.choose(layer, foreseen, idle, seconds)
        assert theirs.choose(layer, foreseen, idle, seconds) == list(chosen)
        read += len(chosen)
        right = 0.2 if step // 500 % 2 else 0.9
        needed = sorted({expert for expert in foreseen if chance.random() < right} | {chance.randrange(12)})
        ours.settle(layer, needed)
        theirs.settle(layer, needed)
    assert read > 1000
