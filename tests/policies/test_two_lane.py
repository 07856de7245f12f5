from random import Random
from statistics import fmean

import pytest
from assignment_cases import BY_HAND, brute_force, layers, random_layer, roofline
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dali import compiled
from dali.policies import create
from dali.policies.assign.greedy import greedy
from dali.policies.assign.two_lane import search, two_lane
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.spans import timeline


def test_residents_run_under_the_transfers():
    # Expert 0 is copied from 0 to 5 under residents 2 and 3, which compute from 0 to 6, and is done at 10; so
    # is the CPU with expert 1. Greedy fetches both (5 <= 10, 5 + 5 <= 10), then finds 10 + 3 > 8 for
    # resident 2, which goes to the CPU, and 13 <= 16 for resident 3: the second copy lands at 10: done at 14.
    workload, view = [4, 4, 3, 3], ResidencyView({2, 3}, slots=2)
    plan = two_lane(workload, view, BY_HAND)
    assert plan == LayerPlan(cpu=(1,), gpu=(2, 3, 0), fetch=(0,))
    assert makespan(plan, workload, view, BY_HAND) == 10
    assert makespan(greedy(workload, view, BY_HAND), workload, view, BY_HAND) == 14


def test_an_expert_in_flight_costs_its_remaining_time():
    # It lands at 1 and is done at 2; fetching it anew would take 6, the CPU 4.
    view = ResidencyView(frozenset(), {0: 1.0}, slots=1)
    assert two_lane([1], view, BY_HAND) == LayerPlan((), (0,), ())


def test_an_expert_that_lands_too_late_is_left_to_the_cpu():
    view = ResidencyView(frozenset(), {0: 4.5}, slots=1)  # done at 5.5, the CPU at 4
    assert two_lane([1], view, BY_HAND) == LayerPlan((0,), (), ())


def test_the_cpu_relieves_an_accelerator_that_computes_long():
    # Four residents of 3 each: 12 on the accelerator alone; one on the CPU (8) leaves 9.
    view = ResidencyView({0, 1, 2, 3})
    plan = two_lane([3, 3, 3, 3], view, BY_HAND)
    assert makespan(plan, [3, 3, 3, 3], view, BY_HAND) == 9
    assert len(plan.cpu) == 1


def test_one_slot_is_planned_as_one_slot():
    # With one slot each copy waits for the compute before it: 9 an expert. One fetched leaves the CPU 20; two
    # are done at 18, the CPU at 10.
    view = ResidencyView(frozenset(), slots=1)
    plan = two_lane([4, 4, 4], view, BY_HAND)
    assert makespan(plan, [4, 4, 4], view, BY_HAND) == 18
    assert len(plan.fetch) == 2


def test_a_contended_link_fetches_less():
    alone = roofline(3, 1, 0.5, 0.1, link=2, slowdown=1.0, launch=0)
    contended = roofline(3, 1, 0.5, 0.1, link=2, slowdown=2.0, launch=0)
    view = ResidencyView(frozenset(), slots=4)
    workload = [1] * 10
    assert len(two_lane(workload, view, contended).fetch) < len(two_lane(workload, view, alone).fetch)


@pytest.mark.skipif(not compiled.AVAILABLE, reason="the kernels were not compiled")
@settings(deadline=None, max_examples=500)
@given(layers(40))
def test_compiled_or_not_the_same_plan_is_found(layer):
    plan, seconds, proven = search(*layer)
    found, modelled, certain = compiled.library.search_two_lane(*layer)
    assert (LayerPlan(*found), certain) == (plan, proven)
    assert modelled == pytest.approx(seconds, rel=1e-12)


ON_THE_CPU_ALONE = [2535, 5354, 6259]  # seeds of layers for which that is best


@pytest.mark.skipif(not compiled.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("seed", [*range(200), *ON_THE_CPU_ALONE])
def test_the_compiled_planner_assigns_as_two_lane(seed):
    workload, view, costs = random_layer(Random(seed), 10, in_flight=False)
    plan = two_lane(workload, view, costs)
    if seed in ON_THE_CPU_ALONE:
        assert plan.gpu == ()
    residents = [(expert, slot) for slot, expert in enumerate(sorted(view.resident))]
    slots, seconds = len(residents) + view.slots, (costs.link, costs.link_contended, costs.launch)
    planner = compiled.library.Planner(
        [residents], 10, slots, costs.cpu, costs.gpu, *seconds, costs.handover, 0.5, False, 0
    )
    ids = [expert for expert, tokens in enumerate(workload) for _ in range(tokens)]
    cpu, launches, _, _ = planner.plan(0, ids, 0, [], 0.0, -view.link_free, len(residents))
    launched = [(expert, fetched) for experts, _, fetched in launches for expert in experts]
    assert tuple(cpu) == plan.cpu
    in_the_call = sum(costs.cpu[workload[expert]] for expert in cpu)
    assert planner.planned == pytest.approx(0.5 + in_the_call if cpu else 0)  # half a second of a call's own
    assert tuple(expert for expert, _ in launched) == plan.gpu
    assert tuple(expert for expert, fetched in launched if fetched) == plan.fetch


def test_more_tokens_than_the_costs_foresee_are_refused():
    with pytest.raises(IndexError):
        two_lane([1, 10**6], ResidencyView(frozenset(), {0: 1.0}, slots=1), BY_HAND)


@settings(deadline=None)
@given(layers())
def test_every_plan_can_run_and_none_of_the_others_is_faster(layer):
    workload, view, costs = layer
    plan = two_lane(workload, view, costs)
    timeline(plan, workload, view, costs)
    seconds = makespan(plan, workload, view, costs)
    assert seconds <= makespan(greedy(workload, view, costs), workload, view, costs) * (1 + 1e-9)
    for device in ("cpu", "gpu"):
        single = create("assign", device).assign(0, workload, view, costs)
        assert seconds <= makespan(single, workload, view, costs) * (1 + 1e-9)


@settings(deadline=None)
@given(layers(), st.integers(1, 5))
def test_experts_nobody_was_routed_to_change_nothing(layer, more):
    workload, view, costs = layer

    def moved(experts):
        return tuple(expert + more for expert in experts)

    flying = {expert + more: t for expert, t in view.in_flight.items()}
    later = ResidencyView(frozenset(moved(view.resident)), flying, view.slots, view.link_free)
    plan = two_lane(workload, view, costs)
    assert two_lane([0] * more + workload, later, costs) == LayerPlan(*map(moved, plan))


@settings(deadline=None)
@given(layers(), st.randoms(use_true_random=False))
def test_names_of_experts_do_not_matter_to_the_makespan(layer, shuffler):
    workload, view, costs = layer
    gains = {round(costs.gpu[w] - costs.cpu[w], 9) for w in set(workload) - {0}}
    assume(len(gains) == len(set(workload) - {0}))  # ties between different workloads are broken by id
    names = list(range(len(workload)))
    shuffler.shuffle(names)
    renamed = [0] * len(workload)
    for expert, name in enumerate(names):
        renamed[name] = workload[expert]
    flying = {names[expert]: t for expert, t in view.in_flight.items()}
    other = ResidencyView(frozenset(names[e] for e in view.resident), flying, view.slots, view.link_free)
    # Greedy decides ties of its own by id, so the search alone is compared.
    _, seconds, _ = search(workload, view, costs)
    plan, again, _ = search(renamed, other, costs)
    assert again == pytest.approx(seconds)
    assert makespan(plan, renamed, other, costs) == pytest.approx(seconds)


def test_near_the_optimum_over_four_orders_of_magnitude():
    rng = Random(20)
    ratios = []
    for case in range(250):
        workload, view, costs = random_layer(rng, 5, in_flight=bool(case % 2))
        if any(workload):
            plan = two_lane(workload, view, costs)
            ratios.append(brute_force(workload, view, costs) / makespan(plan, workload, view, costs))
    assert all(ratio <= 1 + 1e-9 for ratio in ratios)
    assert fmean(ratios) >= 0.99
