"""What systems' lossy parts make of a step's routing."""

import numpy as np
import pytest

from dali import systems
from dali.systems import DROPPED, KEPT, LATER, LOW, Routed
from dali.systems._lossy import shared


def decide(name, ids, weights, resident=(), layer=0, layers=2, predicted=None):
    routed = Routed(
        layer,
        layers,
        np.array(ids),
        np.array(weights, dtype=np.float32),
        set(resident),
        None if predicted is None else np.array(predicted),
    )
    return systems.get(name).parts.reroute(routed)


def test_systems_say_what_they_lose_and_have_it():
    for name in systems.names():
        system = systems.get(name)
        assert (system.parts is not None) == bool(system.lossy)
        for variant in system.variants:
            assert (systems.get(f"{name}:{variant}").parts is not None) == bool(system.lossy)


def test_an_expert_is_treated_as_the_most_careful_token_asks():
    fates = np.array([[KEPT, LOW], [DROPPED, DROPPED], [LATER, LOW]])
    ids = np.array([[3, 1], [1, 0], [3, 2]])
    assert shared(fates, ids).tolist() == [[KEPT, LOW], [LOW, DROPPED], [KEPT, LOW]]


def test_hobbit_saves_on_misses_of_little_weight():
    weights = [[0.5, 0.3, 0.15, 0.05]]  # above: 0, .5, .8, .95
    found = decide("hobbit", [[4, 5, 6, 7]], weights)
    assert found.fates.tolist() == [[KEPT, KEPT, LOW, DROPPED]]
    assert found.ids.tolist() == [[4, 5, 6, 7]]
    assert decide("hobbit", [[4, 5, 6, 7]], weights, resident={6, 7}).fates.tolist() == [[KEPT] * 4]
    two = decide("hobbit", [[4, 5, 6, 7], [7, 5, 6, 4]], weights * 2)  # each loads what the other would not
    assert two.fates.tolist() == [[KEPT, KEPT, LOW, KEPT], [KEPT, KEPT, LOW, KEPT]]


def test_daop_routes_as_predicted_from_the_sixth_layer_on():
    scores = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]
    plain = {"layers": 8, "predicted": scores, "resident": {0, 1}}
    assert decide("daop", [[0, 3], [0, 1]], [[0.6, 0.4]] * 2, layer=4, **plain) is None
    assert decide("daop", [[0, 3]], [[0.6, 0.4]], layer=5, layers=8) is None  # nothing was predicted
    found = decide("daop", [[0, 3], [0, 1]], [[0.6, 0.4], [0.3, 0.2]], layer=5, **plain)
    assert found.ids.tolist() == [[0, 1], [3, 1]]  # of two absent experts the better one stays
    expected = [[4 / 7, 3 / 7], [0.5 * 2 / 3, 0.5 * 1 / 3]]  # weights of what the router's own summed up to
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    assert (found.fates == KEPT).all()


def test_ktransformers_puts_the_cpus_least_experts_off():
    weights = [[0.4, 0.1, 0.3, 0.2]]
    assert decide("ktransformers", [[4, 5, 6, 7]], weights).fates.tolist() == [[KEPT, LATER, KEPT, LATER]]
    assert decide("ktransformers", [[4, 5, 6, 7]], weights, {5}).fates.tolist() == [[KEPT, KEPT, KEPT, LATER]]
    two = decide("ktransformers", [[4, 5, 6, 7], [4, 5, 7, 6]], weights * 2)  # both can wait for 5 alone
    assert two.fates.tolist() == [[KEPT, LATER, KEPT, KEPT], [KEPT, LATER, KEPT, KEPT]]
    assert decide("ktransformers", [[4, 5, 6, 7]], weights, layer=1) is None  # no layer comes after it


@pytest.mark.parametrize(("name", "bits"), [("mixtral-offloading", 2), ("mixtral-offloading:3-bit", 3)])
def test_mixtral_offloading_has_few_bits(name, bits):
    parts = systems.get(name).parts
    assert (parts.bits, parts.reroute) == (bits, None)
