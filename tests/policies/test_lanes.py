from itertools import pairwise

import pytest
from assignment_cases import BY_HAND, layers
from hypothesis import given, settings

from dali.hardware.cost import ExpertCosts
from dali.policies import create
from dali.policies.lanes import makespan
from dali.policies.plan import LayerPlan, ResidencyView
from dali.replay.spans import Span, timeline


def spans(plan, workload, view, costs=BY_HAND):
    found = timeline(plan, workload, view, costs)
    assert makespan(plan, workload, view, costs) == max(span.end for span in found if span.lane != "link")
    return {lane: [tuple(span)[1:] for span in found if span.lane == lane] for lane in ("cpu", "link", "gpu")}


def test_residents_run_under_the_first_copy():
    # Residents 0 and 1 compute from 0 to 4; expert 2 lands at 5, computes until 6; the CPU is busy until 4.
    lanes = spans(LayerPlan((3,), (0, 1, 2), (2,)), [3, 1, 1, 1], ResidencyView(frozenset({0, 1}), slots=1))
    assert lanes == {"cpu": [(3, 0, 4)], "link": [(2, 0, 5)], "gpu": [(0, 0, 3), (1, 3, 4), (2, 5, 6)]}


def test_with_one_slot_a_copy_waits_for_the_compute_before_it():
    # Copies at 0-5 and, after expert 0 has computed until 9, at 9-14; with two slots the second starts at 5.
    plan = LayerPlan((), (0, 1), (0, 1))
    one = spans(plan, [4, 4], ResidencyView(frozenset(), slots=1))
    assert one["link"] == [(0, 0, 5), (1, 9, 14)]
    assert one["gpu"] == [(0, 5, 9), (1, 14, 18)]
    two = spans(plan, [4, 4], ResidencyView(frozenset(), slots=2))
    assert two["link"] == [(0, 0, 5), (1, 5, 10)]
    assert two["gpu"] == [(0, 5, 9), (1, 10, 14)]


def test_copies_are_slow_while_the_cpu_computes():
    # Half pace until 8: 0.8 of the first copy is done by then, the rest takes 0.2 x 5 = 1.
    costs = ExpertCosts([0, 4, 6, 8], [0, 1, 2, 3], link=5, link_contended=10, launch=0)
    lanes = spans(LayerPlan((2,), (0, 1), (0, 1)), [1, 1, 3], ResidencyView(frozenset(), slots=2), costs)
    assert lanes["cpu"] == [(2, 0, 8)]
    assert lanes["link"] == [(0, 0, pytest.approx(9)), (1, pytest.approx(9), pytest.approx(14))]


def test_launches_count_once_for_the_residents_and_once_for_each_arrival():
    costs = ExpertCosts([0, 4], [0, 1], link=5, link_contended=5, launch=0.5)
    lanes = spans(LayerPlan((), (0, 1, 2), (2,)), [1, 1, 1], ResidencyView({0, 1}, slots=1), costs)
    assert lanes["gpu"] == [(0, 0.5, 1.5), (1, 1.5, 2.5), (2, 5, 6.5)]


def test_experts_in_flight_land_first_and_hold_their_slots():
    # 0 has landed, 1 lands at 3; both slots are theirs. The copy of 2 needs 0's slot, free from 4 on.
    view = ResidencyView(frozenset(), {1: 3.0, 0: 0.0}, slots=2)
    lanes = spans(LayerPlan((), (0, 1, 2), (2,)), [4, 1, 1], view)
    assert lanes["gpu"] == [(0, 0, 4), (1, 4, 5), (2, 9, 10)]
    assert lanes["link"] == [(0, 0, 0), (1, 0, 3), (2, 4, 9)]


def test_an_expert_in_flight_that_the_accelerator_does_not_compute_frees_its_slot_on_landing():
    view = ResidencyView(frozenset(), {0: 3.0, 1: 3.5}, slots=1)  # 0 goes to the CPU, nobody needs 1
    lanes = spans(LayerPlan((0,), (2,), (2,)), [1, 0, 1], view)
    assert lanes["link"] == [(0, 0, 3), (1, 3, 3.5), (2, 3.5, 8.5)]
    assert lanes["gpu"] == [(2, 8.5, 9.5)]


def test_with_many_slots_fetched_experts_go_in_groups():
    # Copies at 0-5-10 for the first pair, whose one launch (0.5) starts at 10 and computes both; 10-15 for the last.
    costs = ExpertCosts([0, 4], [0, 1], link=5, link_contended=5, launch=0.5)
    lanes = spans(LayerPlan((), (0, 1, 2), (0, 1, 2)), [1, 1, 1], ResidencyView(frozenset(), slots=8), costs)
    assert lanes["link"] == [(0, 0, 5), (1, 5, 10), (2, 10, 15)]
    assert lanes["gpu"] == [(0, 10, 11.5), (1, 11.5, 12.5), (2, 15, 16.5)]


def test_the_copies_of_a_group_wait_for_a_slot_each():
    # Eight experts have landed and compute for 1 each: two slots are free at 2.
    landed = dict.fromkeys(range(8), 0.0)
    plan = LayerPlan((), tuple(range(10)), (8, 9))
    lanes = spans(plan, [1] * 10, ResidencyView(frozenset(), landed, slots=8))
    assert lanes["link"][8:] == [(8, 2, 7), (9, 7, 12)]
    assert lanes["gpu"][8:] == [(8, 12, 13), (9, 13, 14)]


def test_copies_for_other_layers_hold_the_link():
    view = ResidencyView(frozenset(), slots=1, link_free=2.0)
    assert spans(LayerPlan((), (0,), (0,)), [1], view)["link"] == [(0, 2, 7)]


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (LayerPlan((0,), (1,), ()), "each active expert"),
        (LayerPlan((0, 1), (1, 2), (2,)), "each active expert"),
        (LayerPlan((0, 3), (1, 2), (2,)), "each active expert"),
        (LayerPlan((0,), (2, 1), (2,)), "residents, then"),
        (LayerPlan((0,), (1, 2), ()), "residents, then"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, problem):
    with pytest.raises(ValueError, match=problem):
        timeline(plan, [1, 1, 1, 0], ResidencyView({1}, slots=2), BY_HAND)


def test_a_fetch_without_a_slot_is_refused():
    with pytest.raises(ValueError, match="scratch slot"):
        timeline(LayerPlan((), (0,), (0,)), [1], ResidencyView(frozenset()), BY_HAND)


@settings(deadline=None)
@given(layers())
def test_the_timeline_respects_lanes_landings_and_slots(layer):
    workload, view, costs = layer
    plan = create("assign", "gpu").assign(0, workload, view, costs)
    found = timeline(plan, workload, view, costs)
    ends = [span.end for span in found if span.lane != "link"]
    assert makespan(plan, workload, view, costs) == pytest.approx(max(ends, default=0.0))
    for lane in ("cpu", "gpu"):
        one = [span for span in found if span.lane == lane]
        assert all(later.start >= span.end - 1e-9 for span, later in pairwise(one))
    copies = {span.expert: span for span in found if span.lane == "link"}
    computes = {span.expert: span for span in found if span.lane == "gpu"}
    for expert in plan.gpu:
        if expert in copies:
            assert computes[expert].start >= copies[expert].end
    queue = [*view.landing(), *plan.fetch]
    for place, expert in enumerate(queue):
        if expert in plan.fetch:
            # Slots still held when this copy starts: by earlier copies not computed by then.
            start = copies[expert].start
            held = [e for e in queue[:place] if computes.get(e, copies[e]).end > start + 1e-9]
            assert len(held) < view.slots


@settings(deadline=None)
@given(layers())
def test_more_slots_never_make_a_plan_slower(layer):
    workload, view, costs = layer
    if not view.slots:
        return
    plan = create("assign", "gpu").assign(0, workload, view, costs)
    more = ResidencyView(view.resident, view.in_flight, view.slots + 1, view.link_free)
    assert makespan(plan, workload, more, costs) <= makespan(plan, workload, view, costs) + 1e-9


def test_a_span_reads_lane_expert_start_end():
    assert Span("cpu", 3, 0.0, 1.0)._asdict() == {"lane": "cpu", "expert": 3, "start": 0.0, "end": 1.0}
