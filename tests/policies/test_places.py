"""Who holds a place of the pool, and who makes room."""

import pytest

from dali.policies import create
from dali.policies.places import Places


@pytest.fixture
def places():
    """Three places, held by (0, 0), (0, 1) and (1, 0), used in this order."""
    made = Places(create("pool", "lru", layers=2, experts=3, slots=3, read_seconds=[1.0, 1.0]))
    for layer, expert in ((0, 0), (0, 1), (1, 0)):
        assert made.take((layer, expert), ()) is None
        made.observe(layer, [int(one == expert) for one in range(3)])
    return made


def test_the_lowest_rank_makes_room(places):
    assert places.free == 0
    assert places.take((1, 2), ()) == (0, 0)
    assert (places.held(0), places.held(1)) == ({1}, {0, 2})


def test_who_is_in_use_stays(places):
    assert places.take((1, 2), {(0, 0)}) == (0, 1)


def test_who_is_foreseen_stays_as_long_as_another_can_go(places):
    assert places.take((1, 2), {(1, 0)}, {(0, 0)}) == (0, 1)
    assert places.take((1, 1), {(1, 0), (1, 2)}, {(0, 0)}) == (0, 0)


def test_nothing_changes_where_nobody_can_go(places):
    everybody = {(0, 0), (0, 1), (1, 0)}
    with pytest.raises(LookupError):
        places.take((1, 2), everybody)
    assert (places.held(0), places.held(1), places.free) == ({0, 1}, {0}, 0)


def test_a_locked_share_gives_when_all_others_are_in_use():
    made = Places(create("pool", "balanced", layers=2, experts=3, slots=2, read_seconds=[1.0, 1.0]))
    made.take((0, 0), ())
    made.take((1, 0), ())
    assert made.take((1, 1), {(1, 0)}) == (0, 0)


def test_equals_make_room_by_how_far_away_their_layers_turn_is():
    made = Places(create("pool", "lfu", layers=3, experts=2, slots=3, read_seconds=[1.0] * 3))
    for layer in range(3):
        made.take((layer, 0), ())
        made.observe(layer, [1, 0])
    made.observe(0, [0, 1])
    assert [made.take((0, 1), ()), made.take((0, 0), {(0, 1)})] == [(0, 0), (2, 0)]
