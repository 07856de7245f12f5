"""What is read ahead, and what the guard is told of it, by hand."""

import pytest

from dali.policies import create
from dali.policies.read_ahead import WINDOW, ReadAhead, waiting


def ahead(depth=1):
    policy = create("prefetch", "ridge")
    policy.depth = depth
    return ReadAhead(policy, read=10.0)


@pytest.mark.parametrize(
    ("there", "absent", "seconds"),
    [(5, [], 5), (5, [2], 12), (25, [2, 2], 29), (0, [2, 2, 2], 32), (0, [30, 2], 42)],
)
def test_a_layers_wait_for_one_read_after_another(there, absent, seconds):
    assert waiting(there, absent, 10.0) == seconds


def test_the_busiest_absent_experts_are_read_and_no_more_than_there_is_time_for():
    one = ahead()
    assert one.choose([(1, [0, 5, 7, 9], {3})], idle=25.0) == [(1, 2), (1, 1)]
    assert one.choose([(1, [0, 5, 7, 9], {3})], idle=14.0) == [(1, 2)]
    assert one.choose([(1, [0, 5, 7, 9], {3})], idle=4.0) == []


def test_later_layers_get_the_time_that_the_nearest_leaves():
    one = ahead(depth=2)
    assert one.choose([(1, [1, 0], set()), (2, [0, 1], set())], idle=8.0) == [(1, 0), (2, 1)]
    assert one.choose([(1, [1, 1], set()), (2, [0, 1], set())], idle=8.0) == [(1, 0), (2, 1)]


def judged(one, steps=WINDOW, **layer):
    told = {"seconds": 0.0, "there": 0.0, "ahead": [], "missed": [], "predicting": 0.0, "needed": []} | layer
    for _ in range(steps):
        one.settle(0, **told)
        one.step()
    return one.guard.on


def test_found_experts_pay_for_predictions():
    assert judged(ahead(), seconds=2.0, ahead=[2.0], predicting=1.0)
    assert not judged(ahead(), seconds=2.0, ahead=[], there=2.0, predicting=1.0)


def test_a_busy_disk_is_a_cost():
    # One missed: 12 s after an idle disk, 22 as it was.
    assert not judged(ahead(), seconds=22.0, missed=[(3, 2.0)])
    assert judged(ahead(), seconds=12.0, missed=[(3, 2.0)])


def test_an_expert_gone_for_a_read_in_vain_is_a_cost():
    one = ahead()
    for _ in range(WINDOW):
        one.begin((1, 1), (0, 3))
        one.settle(0, 12.0, 0.0, [], [(3, 2.0)], 0.0, [])
        one.step()
    assert not one.guard.on
    one = ahead()
    for _ in range(WINDOW):
        one.begin((1, 1), (0, 3))
        one.begin((0, 3), None)  # read back in time
        one.settle(0, 12.0, 0.0, [], [(3, 2.0)], 0.0, [])
        one.step()
    assert one.guard.on


def test_what_was_seldom_needed_of_late_is_not_read():
    one = ahead()

    def read(needed):
        chosen = one.choose([(1, [1, 1, 0, 0], set())], idle=25.0)
        one.settle(1, 1.0, 1.0, [], [], 0.0, needed)
        return chosen

    assert [read([1, 2]) for _ in range(9)] == [[(1, 0), (1, 1)]] * 9  # one of two is likely enough
    seldom = [read([2, 3]) for _ in range(20)]
    assert seldom[0] == [(1, 0), (1, 1)]
    assert seldom[-1] == []
    often = [read([0, 1]) for _ in range(20)]
    assert often[-1] == [(1, 0), (1, 1)]
