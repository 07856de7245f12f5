"""What stays in RAM, by hand."""

import pytest

from dali.policies import create
from dali.policies.places import Places
from dali.policies.pool.balanced import locked


def policy(name, layers=1, experts=4, slots=2, read_seconds=None):
    seconds = read_seconds or [1.0] * layers
    return create("pool", name, layers=layers, experts=experts, slots=slots, read_seconds=seconds)


def ranked(name, *workloads):
    """Experts of one layer, who goes first, after some steps."""
    one = policy(name)
    ranks = [one.observe(0, workload) for workload in workloads][-1]
    return sorted(range(4), key=lambda expert: (ranks[expert], expert))


def test_lru_gives_up_what_was_not_used_for_longest():
    assert ranked("lru", [1, 1, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0]) == [3, 0, 2, 1]


def test_lfu_counts_steps_and_not_tokens():
    assert ranked("lfu", [1, 9, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]) == [3, 1, 0, 2]


def test_fading_weighs_a_use_by_how_long_ago_it_was_and_by_what_follows():
    one = policy("fading", read_seconds=[2.0])
    one.observe(0, [1, 0, 0, 5])
    ranks = one.observe(0, [0, 1, 0, 1])
    # 0 and 3 were followed by 1 and 3, which makes half of their means; 1 by nothing yet. So the means of this step's two experts
    # put 1 and 3 at a quarter, and their usual rates are a half and 1.
    likely = [0.0, 0.25**2 / (0.5 + 0.02), 0.0, 0.25**2 / (1 + 0.02)]
    # The fast sum, 0.3 of the slow one, and 1.5 for those of this step.
    uses = [0.85 + 0.3 * 0.97, 1.3 + 1.5, 0.0, 1.85 + 0.3 * 1.97 + 1.5]
    assert list(ranks) == pytest.approx([2 * (rank + 20 * p) for rank, p in zip(uses, likely, strict=True)])


def test_fading_keeps_what_used_to_follow():
    one = policy("fading")
    for step in range(20):
        ranks = one.observe(0, [int(expert == step % 4) for expert in range(4)])
    # 3 has just been used, so 0 comes next, though 1 and 2 were used later than 0.
    assert ranks[0] > max(ranks[1], ranks[2])
    assert ranks[2] > ranks[1]


def test_an_expert_that_is_dear_to_read_stays():
    places = Places(policy("fading", layers=2, slots=2, read_seconds=[1.0, 3.0]))
    for layer in (0, 1):
        places.take((layer, 0), ())
        places.observe(layer, [1, 0, 0, 0])
    assert places.take((0, 1), ()) == (0, 0)


def test_of_equal_scores_that_goes_whose_layer_comes_last():
    places = Places(policy("fading", layers=3, slots=3))
    for layer in range(3):
        places.take((layer, 0), ())
    for layer in (0, 1, 2, 0, 1):
        places.observe(layer, [0, 0, 0, 0] if layer != 2 else [1, 0, 0, 0])
    for layer in (2, 0, 1):
        places.observe(layer, [1, 0, 0, 0])
    assert policy("fading").worth(2.0, 1.0) == pytest.approx(1.2)
    assert places.take((1, 1), {(2, 0)}) == (1, 0)  # and not (0, 0), whose turn comes sooner


def test_shares_are_as_even_as_can_be():
    assert locked(3, 7) == (3, 2, 2)
    assert locked(4, 2) == (1, 1, 0, 0)


def test_balanced_takes_from_layers_above_their_share():
    places = Places(policy("balanced", layers=2, slots=4))
    for layer, expert in ((0, 0), (0, 1), (0, 2), (1, 0)):
        places.take((layer, expert), ())
    places.observe(0, [9, 9, 9, 0])
    places.observe(1, [0, 1, 0, 0])
    assert places.take((1, 1), ()) == (0, 0)  # not (1, 0), which was never used
    assert places.take((1, 2), ()) == (1, 0)  # both hold their share: the layer's own
