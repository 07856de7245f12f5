import pytest

from dali import systems
from dali.policies.cache import Swap
from dali.policies.plan import LayerPlan, ResidencyView
from dali.systems.daop import Assign, predicted_routing
from policies.assignment_cases import BY_HAND
from systems.player import step


def test_each_miss_goes_where_it_takes_less():
    # 4 tokens: 10 on the CPU, 5 + 4 behind a copy. 2: 6 against 7. 1: 4 against 6.
    view = ResidencyView({0}, slots=2)
    assert Assign().assign(0, [4, 1, 2, 4], view, BY_HAND) == LayerPlan((1, 2), (0, 3), (3,))
    assert Assign().assign(0, [4, 1, 2, 4], ResidencyView({0}), BY_HAND) == LayerPlan((1, 2, 3), (0,), ())
    landed = ResidencyView({0}, {2: 0.0}, slots=2)
    assert Assign().assign(0, [4, 1, 2, 4], landed, BY_HAND) == LayerPlan((1,), (0, 2, 3), (3,))


@pytest.mark.parametrize(
    ("workload", "swaps"),
    [
        ([10, 20, 21, 5], [Swap(0, 2)]),  # 5 is not above 20
        ([10, 10, 21, 22], [Swap(0, 3), Swap(1, 2)]),
        ([20, 30, 21, 0], []),  # 21 is not above 1.05 x 20
        ([20, 30, 22, 0], [Swap(0, 2)]),
    ],
)
def test_a_prompt_swaps_hot_for_cold_and_an_answer_nothing(workload, swaps):
    policies = systems.get("daop").create(1, 4, 1, 2)
    policies.begin(step(1, prefill=True))
    assert policies.cache.observe(0, workload, {0, 1}) == swaps
    policies.begin(step(1))
    assert policies.cache.observe(0, workload, {0, 1}) == []


def test_at_most_half_of_the_experts_are_swapped():
    policies = systems.get("daop").create(1, 6, 1, 3)
    policies.begin(step(1, prefill=True))
    assert len(policies.cache.observe(0, [0, 0, 0, 9, 9, 9], {0, 1, 2})) == 3
    few = systems.get("daop").create(1, 3, 1, 1)
    few.begin(step(1, prefill=True))
    assert few.cache.observe(0, [0, 9, 8], {0}) == [Swap(0, 1)]


def test_predicted_routing_starts_at_the_sixth_layer():
    assert predicted_routing(4, [0.4, 0.3, 0.2, 0.1], 2, {2, 3}) is None


@pytest.mark.parametrize(
    ("resident", "ids"),
    [({2, 3}, [0, 2]), ({1, 3}, [0, 1]), ({0, 1}, [0, 1]), (set(), [0, 1]), ({3}, [0, 3])],
)
def test_one_expert_a_token_may_be_the_cpus(resident, ids):
    scores = [0.4, 0.3, 0.2, 0.1]
    total = sum(scores[expert] for expert in ids)
    routed = predicted_routing(5, scores, 2, resident)
    assert routed == [(expert, scores[expert] / total) for expert in ids]
