"""Algorithm 1 on cases worked by hand with assignment_cases.BY_HAND.

For 1, 2, 3, 4 tokens t_cpu is 4, 6, 8, 10 and compute 1, 2, 3, 4; a copy takes 5. So t_gpu is 1 to 4 for a
resident and 5 for an absent expert.
"""

import pytest
from assignment_cases import BY_HAND, layers
from hypothesis import given, settings

from dali.hardware.cost import ExpertCosts
from dali.policies.assign.greedy import greedy
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.spans import timeline


def test_golden_mixed():
    # e1 resident, 3 tokens: cpu 8, gpu 3, gap 5. e3, 2 tokens: 6, 5, gap 1. e0 and e4, 1 token: 4, 5, gap 1.
    # Order e1 (5), then e0, e3, e4 (1 each, by id):
    #   e1: 0 + 3 <= 0 + 8  gpu, T_gpu = 3      e0: 3 + 5 > 0 + 4   cpu, T_cpu = 4
    #   e3: 3 + 5 <= 4 + 6  gpu, T_gpu = 8      e4: 8 + 5 > 4 + 4   cpu, T_cpu = 8
    plan = greedy([1, 3, 0, 2, 1], ResidencyView({1}, slots=2), BY_HAND)
    assert plan == LayerPlan(cpu=(0, 4), gpu=(1, 3), fetch=(3,))


def test_golden_all_resident_still_uses_the_cpu():
    # Four residents with 3 tokens: cpu 8, gpu 3 each. 3 <= 8 gpu; 6 <= 8 gpu; 9 > 8 cpu; 9 <= 16 gpu.
    plan = greedy([3, 3, 3, 3], ResidencyView({0, 1, 2, 3}), BY_HAND)
    assert plan == LayerPlan(cpu=(2,), gpu=(0, 1, 3), fetch=())


def test_golden_a_tie_goes_to_the_gpu():
    # cpu 5, gpu max(5, 1) = 5: 0 + 5 <= 0 + 5.
    costs = ExpertCosts([0, 5], [0, 1], link=5, link_contended=9, launch=3)
    assert greedy([1], ResidencyView(frozenset(), slots=1), costs) == LayerPlan((), (0,), (0,))


def test_golden_the_largest_gap_is_decided_first():
    # e0, 1 token: cpu 4, gpu 5, gap 1.  e1, 4 tokens: cpu 10, gpu 5, gap 5.
    #   e1: 0 + 5 <= 0 + 10 gpu, T_gpu = 5.  e0: 5 + 5 > 0 + 4 cpu.
    plan = greedy([1, 4], ResidencyView(frozenset(), slots=1), BY_HAND)
    assert plan == LayerPlan(cpu=(0,), gpu=(1,), fetch=(1,))


def test_golden_copies_are_queued_in_the_order_of_decision():
    # cpu, gpu and gap: e0 6, 5, 1; e1 10, 5, 5; e2 8, 5, 3; e3 4, 5, 1.
    #   e1: 5 <= 10 gpu, 5.  e2: 10 > 8 cpu, 8.  e0: 10 <= 14 gpu, 10.  e3: 15 > 12 cpu.
    plan = greedy([2, 4, 3, 1], ResidencyView(frozenset(), slots=1), BY_HAND)
    assert plan == LayerPlan(cpu=(2, 3), gpu=(1, 0), fetch=(1, 0))


def test_golden_without_a_slot_only_residents_run_on_the_accelerator():
    # e1, resident, 3 tokens: gap 5, 3 <= 8 gpu. e0, 4 tokens: 10 against 5, but there is nowhere to put it.
    plan = greedy([4, 3], ResidencyView({1}, slots=0), BY_HAND)
    assert plan == LayerPlan(cpu=(0,), gpu=(1,), fetch=())


def test_golden_a_prefetched_expert_is_there_once_it_has_landed():
    # e0 landed: gpu 3, gap 5. e1 still in flight: a whole copy, gpu 5, gap 3. e2 absent: gpu 5, gap 1.
    #   e0: 3 <= 8 gpu, 3.  e1: 3 + 5 <= 0 + 8 gpu, 8.  e2: 13 > 6 cpu.
    view = ResidencyView(frozenset(), {0: 0.0, 1: 0.1}, slots=3)
    assert greedy([3, 3, 2], view, BY_HAND) == LayerPlan(cpu=(2,), gpu=(0, 1), fetch=())


def test_nothing_to_do():
    assert greedy([0, 0], ResidencyView({1}, slots=1), BY_HAND) == LayerPlan((), (), ())


def algorithm_1(workload, view, costs):
    """The paper's listing, word for word: 0-1 vectors C and G over all experts."""
    experts = range(len(workload))
    t_cpu = [costs.cpu[w] for w in workload]
    there = [e in view.resident or view.in_flight.get(e, 1.0) == 0.0 for e in experts]
    t_gpu = [max(0.0 if there[e] else costs.link, costs.gpu[workload[e]]) for e in experts]
    order = sorted((e for e in experts if workload[e]), key=lambda e: abs(t_gpu[e] - t_cpu[e]), reverse=True)
    C, G = [0] * len(workload), [0] * len(workload)
    for e in order:
        T_cpu = sum(t_cpu[i] for i in order if C[i])
        T_gpu = sum(t_gpu[i] for i in order if G[i])
        if T_gpu + t_gpu[e] <= T_cpu + t_cpu[e]:
            G[e] = 1
        else:
            C[e] = 1
    return C, G


@settings(deadline=None)
@given(layers())
def test_equals_the_papers_listing_wherever_there_are_slots(layer):
    workload, view, costs = layer
    if not view.slots:
        return
    plan = greedy(workload, view, costs)
    C, G = algorithm_1(workload, view, costs)
    assert sorted(plan.cpu) == [e for e, chosen in enumerate(C) if chosen]
    assert sorted(plan.gpu) == [e for e, chosen in enumerate(G) if chosen]


@settings(deadline=None)
@given(layers())
def test_every_plan_can_run(layer):
    workload, view, costs = layer
    timeline(greedy(workload, view, costs), workload, view, costs)


@pytest.mark.parametrize("unit", [2.0, 0.25])
@settings(deadline=None)
@given(layer=layers())
def test_the_unit_of_time_does_not_matter(layer, unit):
    workload, view, costs = layer
    scaled = ExpertCosts(
        [unit * t for t in costs.cpu],
        [unit * t for t in costs.gpu],
        unit * costs.link,
        unit * costs.link_contended,
        unit * costs.launch,
    )
    flying = {expert: unit * t for expert, t in view.in_flight.items()}
    later = ResidencyView(view.resident, flying, view.slots, unit * view.link_free)
    assert greedy(workload, later, scaled) == greedy(workload, view, costs)
