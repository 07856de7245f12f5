"""What compiled code counts of experts in RAM over a disk, held to the policy that replays use."""

from __future__ import annotations

import random

import pytest

from dali.compiled import library
from dali.policies.pool.fading import Policy


@pytest.mark.skipif(library is None, reason="the kernels were not compiled")
def test_it_counts_alike():
    costs, chance = [3.0, 1.5, 7.25], random.Random(0)
    ours, theirs = Policy(3, 6, 9, costs), library.Rates(costs, 6)
    ranks = [[0.0] * 6 for _ in costs]
    for _ in range(400):
        turn, experts = chance.randrange(3), sorted(chance.sample(range(6), chance.randint(0, 4)))
        ranks[turn] = list(ours.observe(turn, [chance.choice((1, 200)) * (e in experts) for e in range(6)]))
        theirs.note(turn, experts)
        for layer, of_layer in enumerate(ranks):
            wait = ((layer - turn - 1) % 3 + 1) / 3
            assert [theirs.worth(layer, e) for e in range(6)] == [ours.worth(rank, wait) for rank in of_layer]
