"""Why experts are where they are; times worked by hand from assignment_cases.BY_HAND."""

from __future__ import annotations

from assignment_cases import BY_HAND

from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.reasons import AHEAD, COPIED, CPU, RESIDENT, reasons


def told(plan, workload, view, waiting=()):
    planned, found = reasons(plan, workload, view, waiting, BY_HAND)
    return planned, {reason.expert: (reason.place, reason.why, reason.otherwise) for reason in found}


def test_a_resident_a_copy_and_the_cpu_each_with_what_else_there_was():
    # 0 and 1 compute until 4, 2 lands at 5 and computes until 6; the CPU's expert 3 ends at 4.
    view = ResidencyView({0, 1}, slots=1)
    planned, found = told(LayerPlan((3,), (0, 1, 2), (2,)), [3, 1, 1, 1], view)
    assert planned == 6
    # On the CPU after the 4 seconds of expert 3: expert 1 or 2 ends at 8, expert 0 with 3 tokens at 12.
    assert found[0] == (RESIDENT, "resident", 12)
    assert found[1] == (RESIDENT, "resident", 8)
    assert found[2] == (COPIED, "copied when it was wanted, as on the CPU the layer would end no sooner", 8)
    # Copied behind expert 2, whose slot is free from 6 on: lands at 11, computes until 12.
    assert found[3] == (CPU, "not on the accelerator: with a copy the layer would end no sooner", 12)


def test_what_was_foreseen_and_what_would_land_too_late():
    view = ResidencyView(frozenset(), {0: 0.0, 1: 9.0}, slots=2)
    planned, found = told(LayerPlan((1,), (0,), ()), [1, 1], view, waiting=(0, 1))
    assert planned == 4
    assert found[0] == (AHEAD, "predicted, and fetched ahead of its layer", 8)
    assert found[1] == (CPU, "on its way to the accelerator, where the layer would end no sooner", 10)


def test_a_policy_that_could_have_done_better_is_told_so():
    _, found = told(LayerPlan((), (0,), (0,)), [1], ResidencyView(frozenset(), slots=1))
    assert found[0] == (
        COPIED,
        "copied when it was wanted, though on the CPU the layer would end sooner",
        4,
    )  # and not 6
    _, found = told(LayerPlan((0,), (), ()), [1], ResidencyView({0}))
    assert found[0] == (CPU, "on the accelerator, too, where the layer would end sooner", 1)


def test_without_a_slot_there_is_no_other_place():
    _, found = told(LayerPlan((0,), (), ()), [1], ResidencyView(frozenset()))
    assert found[0] == (CPU, "not on the accelerator, which has no slot to copy it into", None)
