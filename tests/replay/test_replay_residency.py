"""The link's queue and the slots' roles, by hand."""

import pytest

from dali.policies.cache import Swap
from dali.replay.residency import Link, Residency


@pytest.fixture
def link():
    return Link(alone=2.0, contended=4.0)


def test_copies_go_one_after_another(link):
    residency = Residency([[0]], 3, link)
    residency.fetch(0, 1)
    residency.fetch(0, 2)
    assert residency.view(0).in_flight == {1: 2.0, 2: 4.0}
    link.advance(3.0)
    view = residency.view(0)
    assert (view.in_flight, view.link_free, view.slots) == ({1: 0.0, 2: 1.0}, 1.0, 3)
    link.advance(9.0)
    assert residency.view(0).link_free == 0.0


def test_contended_copies_take_twice_as_long(link):
    assert link.work(6.0, cpu_end=4.0) == 4.0  # 2 of it in the first 4 seconds
    assert link.elapsed(4.0, cpu_end=4.0) == 6.0
    assert link.elapsed(1.0, cpu_end=4.0) == 2.0


@pytest.mark.parametrize("cpu_end", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 8.0])
def test_elapsed_is_the_inverse_of_work(link, cpu_end, seconds):
    assert link.elapsed(link.work(seconds, cpu_end), cpu_end) == pytest.approx(seconds)


def test_a_swap_from_scratch_exchanges_roles_and_copies_nothing(link):
    residency = Residency([[0, 1]], 2, link)
    residency.demand(0, 5)
    residency.swap(0, Swap(evict=0, load=5))
    assert (residency.residents(0), residency.free_slots, residency.copies) == ({1, 5}, 2, 1)
    assert residency.view(0).in_flight == {}


def test_any_other_swap_counts_once_its_copy_has_landed(link):
    residency = Residency([[0, 1]], 1, link)
    residency.swap(0, Swap(evict=0, load=5))
    view = residency.view(0)
    assert (view.resident, view.in_flight, residency.unsettled(0)) == ({1}, {5: 2.0}, {5})
    link.advance(2.0)
    assert residency.view(0).resident == {1, 5}
    assert residency.unsettled(0) == set()


def test_a_swap_may_take_another_layers_slot(link):
    residency = Residency([[0], [0, 1]], 1, link)
    residency.demand(0, 3)
    residency.swap(0, Swap(evict=1, load=3, donor=1))
    assert [residency.residents(layer) for layer in range(2)] == [{0, 3}, {0}]


def test_a_released_copy_still_has_its_turn(link):
    residency = Residency([[0]], 1, link)
    residency.fetch(0, 3)
    residency.release(0, 3)
    assert (residency.free_slots, residency.view(0).link_free) == (1, 2.0)
