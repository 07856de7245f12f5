import pytest

from dali import systems
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems.ktransformers import deferred
from policies.assignment_cases import BY_HAND
from systems.player import step

MANY = 100  # experts: 4 tokens each make a prompt long enough


def starts(name, layers=2, experts=4, capacity=2):
    cache = systems.get(name).create(layers, experts, 1, capacity, 3).cache
    return [cache.initial(layer) for layer in range(layers)]


def test_the_masks():
    assert starts("ktransformers") == [(0, 1), (0, 1)]
    assert starts("ktransformers:front-loading") == [(0, 1, 2, 3), ()]
    assert starts("ktransformers:front-loading", layers=3) == [(0, 1, 2, 3), (0, 1), ()]
    anywhere = starts("ktransformers:random", layers=20)
    assert sum(map(len, anywhere)) == 40
    assert {len(layer) for layer in anywhere} > {2}
    assert anywhere == starts("ktransformers:random", layers=20)


def test_the_mask_by_frequency_is_chosen_once():
    cache = systems.get("ktransformers:frequency").create(1, 4, 1, 2).cache
    assert cache.observe(0, [0, 0, 500, 11], {0, 1}) == []
    assert cache.observe(0, [1, 0, 0, 0], {0, 1}) == [Swap(1, 2), Swap(0, 3)]
    assert cache.observe(0, [999, 0, 0, 0], {2, 3}) == []


def test_long_prompts_are_computed_on_the_accelerator_and_choose_anew():
    policies = systems.get("ktransformers").create(1, MANY, 1, 2)
    view = ResidencyView({0, 1}, slots=2)
    long, short = [4] * MANY, [3, *[4] * (MANY - 1)]
    assert policies.assign.assign(0, long, view, BY_HAND).cpu == ()
    assert policies.assign.assign(0, short, view, BY_HAND) == LayerPlan(tuple(range(2, MANY)), (0, 1), ())
    hot = [*[4] * (MANY - 2), 9, 5]
    policies.begin(step(1, prefill=True))
    assert policies.cache.observe(0, hot, {0, 1}) == [Swap(0, 98), Swap(1, 99)]
    assert policies.cache.observe(0, short, {0, 1}) == []
    policies.begin(step(1))
    assert policies.cache.observe(0, hot, {0, 1}) == []


@pytest.mark.parametrize(
    ("weights", "count", "slots"),
    [
        ([0.4, 0.1, 0.3, 0.2], 2, [1, 3]),
        ([0.4, 0.1, 0.3, 0.2], 9, [1, 2, 3]),
        ([0.25] * 4, 1, [3]),
        ([0.6, 0.4], 0, []),
    ],
)
def test_the_least_weighty_experts_are_deferred(weights, count, slots):
    assert deferred(weights, count) == slots
