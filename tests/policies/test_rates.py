"""Which experts leave RAM for others from a disk, worked by hand; and compiled code decides alike."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.rates import Rates, victims


def test_uses_fade_fast_and_slowly_and_count_by_what_they_cost():
    rates = Rates([2.0], experts=3)
    rates.note(0, [0, 1])
    rates.note(0, [1])
    whole = 2.0 * 0.6  # the next step of the only layer is a whole step away
    assert rates.worth(0, 0) == pytest.approx(whole * (0.85 + 0.4 * 0.97))
    assert rates.worth(0, 1) == pytest.approx(whole * (1.85 + 0.4 * 1.97))
    assert rates.worth(0, 2) == 0


def test_of_equals_the_one_whose_step_is_farther_off_goes_first():
    rates = Rates([1.0] * 4, experts=1)
    for layer in range(4):
        rates.note(layer, [0])
    rates.note(0, [0])
    rates.note(1, [0])
    first = [layer for layer, _ in victims(rates, [(2, 0), (3, 0)], 2)]
    assert first == [3, 2]  # after layer 1 comes layer 2


def test_the_least_used_by_what_reading_them_costs_go_first():
    held = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def told(costs: list[float], count: int) -> list[tuple[int, int]]:
        rates = Rates(costs, experts=2)
        rates.note(0, [0])
        rates.note(0, [0, 1])
        rates.note(1, [0, 1])
        rates.note(1, [0])
        return victims(rates, held, count)

    assert told([1.0, 1.0], 2) == [(1, 1), (0, 1)]
    assert told([1.0, 9.0], 2) == [(0, 1), (0, 0)]
    assert told([1.0, 1.0], 0) == []
    assert sorted(told([1.0, 1.0], 9)) == held


@pytest.mark.skipif(library is None, reason="the kernels were not compiled")
def test_compiled_code_counts_alike():
    costs, chance = [3.0, 1.5, 7.25], random.Random(0)
    ours, theirs = Rates(costs, 6), library.Rates(costs, 6)
    for _ in range(400):
        layer, experts = chance.randrange(3), sorted(chance.sample(range(6), chance.randint(1, 4)))
        ours.note(layer, experts)
        theirs.note(layer, experts)
        assert all(ours.worth(layer, e) == theirs.worth(layer, e) for layer in range(3) for e in range(6))
