"""Which experts leave memory for others from a disk, worked by hand; and compiled code decides alike."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.rates import Rates, victims


def test_a_share_is_of_the_tokens_that_were_seen():
    rates = Rates(layers=2, experts=3)
    assert rates.of(0, 1) == 0
    rates.note(0, [0, 1], [3, 1])
    assert rates.of(0, 0) == pytest.approx(0.75 + 2 * 0.75)
    assert rates.of(0, 1) == pytest.approx(0.25 + 2 * 0.25)
    assert rates.of(0, 2) == rates.of(1, 0) == 0
    rates.note(0, [2], [4])  # 3 and 1 of 4 tokens have faded once
    fast, slow = 4 / (4 * 0.85 + 4), 4 / (4 * 0.97 + 4)
    assert rates.of(0, 2) == pytest.approx(fast + 2 * slow)
    assert rates.of(0, 0) == pytest.approx(0.75 * (1 - fast) + 2 * 0.75 * (1 - slow))


def test_long_prompts_and_single_tokens_compare():
    """A layer that has seen a prompt of many tokens is not thereby worth more than one that has seen one."""
    rates = Rates(layers=2, experts=2)
    rates.note(0, [0, 1], [400, 100])
    rates.note(1, [0], [1])
    assert rates.of(0, 0) == pytest.approx(0.8 * 3)
    assert rates.of(1, 0) == pytest.approx(3)


def test_the_least_used_by_what_reading_them_costs_go_first():
    rates = Rates(layers=2, experts=2)
    rates.note(0, [0, 1], [3, 1])
    rates.note(1, [0, 1], [2, 2])
    held = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert victims(rates, held, [1.0, 1.0], 3) == [(0, 1), (1, 0), (1, 1)]
    assert victims(rates, held, [4.0, 1.0], 3) == [(1, 0), (1, 1), (0, 1)]
    assert victims(rates, held, [1.0, 1.0], 0) == []
    assert victims(rates, reversed(held), [1.0, 1.0], 9) == [(0, 1), (1, 0), (1, 1), (0, 0)]


@pytest.mark.skipif(library is None, reason="the kernels were not compiled")
@pytest.mark.parametrize("steps", [40, 3000])  # after 1,400 of them sums are scaled anew
def test_compiled_code_counts_alike(steps):
    ours, theirs, chance = Rates(2, 6), library.Rates(2, 6), random.Random(steps)
    for _ in range(steps):
        layer, experts = chance.randrange(2), sorted(chance.sample(range(6), 3))
        tokens = [chance.choice((1, 1, 1, 200)) for _ in experts]
        ours.note(layer, experts, tokens)
        theirs.note(layer, experts, tokens)
    assert all(ours.of(layer, e) == theirs.of(layer, e) for layer in range(2) for e in range(6))
