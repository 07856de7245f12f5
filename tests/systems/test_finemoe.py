import numpy as np
import pytest

from dali.policies.cache import Swap
from dali.policies.plan import ResidencyView
from dali.policies.prefetch import Forecast
from dali.policies.signals import Signals
from dali.systems.finemoe import Cache, Maps, Prefetch
from policies.assignment_cases import BY_HAND
from systems.player import step

FIRST = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]
SECOND = [[0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.1, 0.2, 0.7]]


def record(maps, layer, *scores):
    rows = np.array(scores)
    ids = rows.argmax(axis=1)[:, None]
    maps.note(layer, np.bincount(ids.ravel(), minlength=3).tolist(), Signals(ids, scores=rows))


def known(maps: Maps) -> Maps:
    for token, embedding in ((FIRST, [1.0, 0.0]), (SECOND, [0.0, 2.0])):
        maps.begin(step(1, embeddings=np.array([embedding])))
        for layer, row in enumerate(token):
            record(maps, layer, row)
    return maps


def expected(maps, layer, later):
    return pytest.approx(maps.expected(*maps.by_trajectory(layer), later))


@pytest.fixture
def maps() -> Maps:
    return known(Maps(4, 3, 1, distance=3))


def test_nothing_is_known_at_first():
    maps = Maps(4, 3, 1)
    maps.begin(step(1, embeddings=np.ones((1, 2))))
    record(maps, 0, FIRST[0])
    assert (maps.by_trajectory(0), maps.by_embedding()) == (None, None)
    assert maps.chances(0).min() == 1


@pytest.mark.parametrize(
    ("scores", "later"),
    [
        (FIRST[0], [0.6, 0, 0]),  # the same: nothing has to add up, top 1 stays
        (SECOND[0], [0, 0, 0.7]),
        ([0.0, 1.0, 0.0], [0.6, 0.3, 0]),  # cosine .1 / .81 with both, a tie: .6 is not yet .88
    ],
)
def test_the_less_alike_the_more_is_expected(maps, scores, later):
    maps.begin(step(2))
    record(maps, 0, scores)
    assert expected(maps, 0, 3) == later


def test_the_trajectory_is_compared_as_a_whole(maps):
    maps.begin(step(2))
    record(maps, 0, [0.4, 0.1, 0.5])
    assert expected(maps, 0, 3) == [0, 0, 0.7]
    record(maps, 1, FIRST[1])
    assert maps.by_trajectory(1)[0].tolist() == [0]


def test_a_batch_adds_up(maps):
    maps.begin(step(2, 3))
    record(maps, 0, FIRST[0], SECOND[0])
    assert expected(maps, 0, 3) == [0.6, 0, 0.7]
    assert maps.chances(0)[3] == pytest.approx([0.35, 0.25, 0.4])


def test_embeddings_find_the_first_layers(maps):
    prefetch = Prefetch(4, maps)
    maps.begin(step(2, embeddings=np.array([[0.0, 7.0]])))
    record(maps, 0, FIRST[0])
    foreseen = prefetch.foresee(0, [1, 0, 0])
    assert [later for later, _ in foreseen] == [1, 2, 3]
    assert [row for _, row in foreseen] == [
        pytest.approx([0, 0, 0.8]),
        pytest.approx([0, 0, 0.8]),
        pytest.approx([0.6, 0, 0]),
    ]
    record(maps, 1, FIRST[1])
    assert prefetch.foresee(1, [1, 0, 0]) == []
    maps.begin(step(2))
    record(maps, 0, FIRST[0])
    assert [later for later, _ in prefetch.foresee(0, [1, 0, 0])] == [3]


def test_a_layer_queues_what_fits_before_the_next(maps):
    prefetch = Prefetch(4, maps)
    maps.begin(step(2))
    record(maps, 0, [0.0, 1.0, 0.0])
    ((later, workload),) = prefetch.foresee(0, [0, 1, 0])
    # Three layers to go in 34 seconds beside the 2 of queued copies: 36 / 3 - 2 = 10 until the next, two copies of 5.
    ahead = Forecast(later, workload, ResidencyView(set(), slots=3, link_free=2.0), 34.0)
    assert prefetch.plan([ahead], BY_HAND) == [(3, 0), (3, 1)]
    assert prefetch.plan([ahead._replace(idle=26.0)], BY_HAND) == [(3, 0)]  # 7 1/3: one, to the nearest


@pytest.mark.parametrize(
    ("signals", "row"),
    [
        (Signals(np.array([[0, 2]]), weights=np.array([[0.75, 0.25]])), [0.75, 0, 0.25]),
        (Signals(np.array([[0, 2]])), [0.5, 0, 0.5]),
        (None, [0.5, 0, 0.5]),
    ],
)
def test_where_scores_are_missing_weights_and_then_uses_stand_in(signals, row):
    maps = Maps(1, 3, 2)
    maps.note(0, [1, 0, 1], signals)
    maps.begin(step(1))
    record(maps, 0, row)
    nearest, cosine = maps.by_trajectory(0)
    assert (nearest.tolist(), cosine.tolist()) == ([0], pytest.approx([1.0]))
    assert maps.chances(0)[0] == pytest.approx(row)


def test_a_full_store_gives_up_the_map_most_like_the_new_one():
    maps = known(Maps(4, 3, 1, stored=2, distance=3))
    maps.begin(step(2, embeddings=np.array([[1.0, 0.1]])))
    for layer in range(4):
        record(maps, layer, [0.2, 0.2, 0.6])
    # By trajectory the second is nearer, by embedding the first, and embeddings weigh 3 / 4.
    maps.begin(step(3))
    record(maps, 0, [0.0, 0.0, 1.0])
    assert maps.chances(0)[3] == pytest.approx(SECOND[3])
    record(maps, 1, [0.2, 0.2, 0.6])
    maps.begin(step(4))
    record(maps, 0, [0.2, 0.2, 0.6])
    assert maps.chances(0)[3] == pytest.approx([0.2, 0.2, 0.6])


@pytest.mark.parametrize(("resident", "swap"), [({0, 1}, Swap(1, 2)), ({0}, Swap(0, 2, donor=1))])
def test_the_cache_evicts_the_least_probability_times_visits(maps, resident, swap):
    class Placed(Cache):
        def initial(self, layer):
            return (0, 1)

    cache = Placed(4, 3, 2, 0, maps)
    for _ in range(2):
        maps.begin(step(2))
        for layer in range(4):
            rows = np.array([[0.9, 0.05, 0.05]])
            cache.observe(layer, [1, 1, 0], {0, 1}, (), frozenset(), Signals(np.array([[0]]), scores=rows))
    # As the first: in layer 0 expert 0 has .8 x 2 and 1 .1 x 2, in layer 1 the other way round; ties to the lower layer.
    maps.begin(step(3))
    chosen = Signals(np.array([[2]]), scores=np.array([FIRST[0]]))
    assert cache.observe(0, [0, 0, 1], resident, {2}, frozenset(), chosen) == [swap]
