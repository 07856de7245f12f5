import numpy as np
import pytest

from dali.policies.cache import Swap
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import Forecast
from dali.policies.signals import Signals
from dali.systems.moe_infinity import Cache, History, Prefetch
from policies.assignment_cases import BY_HAND
from systems.player import step


def record(history, layer, *experts):
    """Each token of the step goes to one expert."""
    workload = np.bincount(experts, minlength=3).tolist()
    history.note(layer, workload, Signals(np.array(experts)[:, None]))


def two_requests(**options) -> History:
    """Request 1 went to 0 in layer 0 and to 1 in layer 1, request 2 to 2 and 2; request 3 begins."""
    history = History(2, 3, **options)
    for request, first, second in ((1, 0, 1), (2, 2, 2)):
        history.begin(step(request))
        record(history, 0, first)
        record(history, 1, second)
    history.begin(step(3))
    return history


def test_the_first_request_goes_by_itself():
    history = History(2, 3)
    history.begin(step(1))
    record(history, 0, 0)
    assert history.expected().tolist() == [[1, 0, 0], [0, 0, 0]]
    history.begin(step(1))
    record(history, 0, 2)
    assert history.expected().tolist() == [[0.5, 0, 0.5], [0, 0, 0]]


def test_the_nearest_request_says_what_comes():
    history = two_requests()
    record(history, 0, 0)
    assert history.expected().tolist() == [[1, 0, 0], [0, 1, 0]]
    history = two_requests()
    record(history, 0, 2)
    assert history.expected().tolist() == [[0, 0, 1], [0, 0, 1]]


def test_matrices_count_over_steps_and_compare_by_the_mean_of_rows():
    history = two_requests()
    record(history, 0, 0)
    record(
        history, 1, 2
    )  # cosines 1 and 0 with request 1, 0 and 1 with request 2: a tie, to the first stored
    assert history.expected()[0].tolist() == [1, 0, 0]
    history.begin(step(3))
    record(history, 0, 2)  # row 0 is 1, 0, 1 now: .71 and 0, .71 and 1
    assert history.expected()[0].tolist() == [0, 0, 1]


def test_a_batch_adds_up_and_each_token_counts_for_its_own_request():
    history = two_requests()
    history.begin(step(3, 4, 3))
    record(history, 0, 0, 2, 0)
    assert history.expected().tolist() == [[1, 0, 1], [0, 1, 1]]


def test_the_oldest_matrix_gives_way_and_present_requests_are_compared_anew():
    history = two_requests(stored=1)
    record(history, 0, 0)
    assert history.expected().tolist() == [[0, 0, 1], [0, 0, 1]]
    history = History(1, 3)
    history.begin(step(1, 2))
    record(history, 0, 0, 1)
    history.begin(step(2))  # request 1 is over
    assert history.expected().tolist() == [[1, 0, 0]]


def placed(start, history) -> Cache:
    class Placed(Cache):
        def initial(self, layer):
            return start[layer]

    return Placed(2, 3, 1, 0, history)


@pytest.mark.parametrize(
    ("start", "swaps"),
    [
        # (0, 1): p = 0, no decay. (1, 1): p = 1, decay 1/2.
        (((1,), (1,)), [Swap(1, 0)]),
        # (0, 1): epsilon. (1, 0): epsilon / 2.
        (((1,), (0,)), [Swap(0, 0, donor=1)]),
    ],
)
def test_the_cache_evicts_what_is_least_expected_and_latest(start, swaps):
    cache = placed(start, two_requests())
    chosen = Signals(np.array([[0]]))
    assert cache.observe(0, [1, 0, 0], set(start[0]), {0}, frozenset(), chosen) == swaps


def test_it_prefetches_by_expectation_and_nearness():
    history = two_requests()
    prefetch = Prefetch(2, history)
    assert prefetch.foresee(0, [1, 0, 0]) == [(1, [0, 0, 0])]
    record(history, 0, 0)
    assert prefetch.foresee(0, [1, 0, 0]) == [(1, [0, 0.5, 0])]
    assert prefetch.foresee(1, [1, 0, 0]) == ()


def test_the_queue_is_ordered_over_layers_while_the_link_is_idle():
    view = ResidencyView({3}, slots=2)
    ahead = [Forecast(1, [0.2, 0.6, 0, 0.9], view, 10), Forecast(2, [0.7, 0.2, 0, 0], view, 15)]
    assert Prefetch(4, History(4, 4)).plan(ahead, BY_HAND) == [(2, 0), (1, 1)]
    ahead[0] = ahead[0]._replace(idle=9)
    assert Prefetch(4, History(4, 4)).plan(ahead, BY_HAND) == [(2, 0)]
    assert Prefetch(4, History(4, 4)).plan([], BY_HAND) == []
