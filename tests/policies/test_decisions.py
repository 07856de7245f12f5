"""What policies decide is checked: each rule broken once, by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dali.errors import DaliError
from dali.hardware.cost import ExpertCosts
from dali.policies import Policies, create
from dali.policies.cache import CachePolicy, Swap
from dali.policies.decisions import (
    Decisions,
    forecasts_fault,
    initial_fault,
    plan_fault,
    prefetch_fault,
    swaps_fault,
)
from dali.policies.plan import LayerPlan, ResidencyView
from dali.policies.prefetch import Forecast, PrefetchPolicy

COSTS = ExpertCosts([0.0, 1.0], [0.0, 1.0], 1.0, 1.0, 0.1)
VIEW = ResidencyView({0, 1}, {2: 1.0, 3: 0.5}, slots=4)
WORKLOAD = [1, 0, 2, 1, 1, 1]  # all but expert 1


@pytest.mark.parametrize(
    "plan",
    [
        LayerPlan((0, 2, 3, 4, 5), (), ()),
        LayerPlan((4, 5), (0, 3, 2), ()),
        LayerPlan((2, 3), (0, 5, 4), (5, 4)),
    ],
)
def test_sound_plans(plan):
    assert plan_fault(plan, WORKLOAD, VIEW) is None


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        (None, "returned None, which is no LayerPlan"),
        (((0, 2, 3, 4, 5), (), ()), "which is no LayerPlan"),
        (LayerPlan([0, 2, 3, 4, 5], (), ()), "of three tuples"),
        (LayerPlan((2, 3, 4, 5), (), ()), r"leaves out \[0\]"),
        (LayerPlan((0, 2, 3, 4, 5), (0,), ()), "places expert 0 twice"),
        (LayerPlan((0, 1, 2, 3, 4, 5), (), ()), "places 1, which is no expert that a token was routed to"),
        (LayerPlan((0, 2, 3, 4, -1), (), ()), "places -1"),
        (LayerPlan((0, 2, 3, 4, "5"), (), ()), "places '5'"),
        (LayerPlan((0, 2, 3, 4, 5.0), (), ()), "places 5.0, which is no expert"),
        (LayerPlan((False, 2, 3, 4, 5), (), ()), "places False, which is no expert"),
        (LayerPlan((2, 3, 4), (0, 5), ()), "runs expert 5 on the accelerator, where it is not"),
        (LayerPlan((2, 3), (0, 4, 5), (5, 4)), "does not end in what it fetches"),
        (LayerPlan((0, 2, 4), (3, 5), (3, 5)), "fetches expert 3, which is there or on its way"),
        (LayerPlan((4, 5), (3, 2, 0), ()), "not residents first"),
        (LayerPlan((4, 5), (0, 2, 3), ()), "not residents first and then experts in flight as they land"),
    ],
)
def test_plans_that_cannot_be_run(plan, fault):
    assert re.search(fault, plan_fault(plan, WORKLOAD, VIEW) or "")


def test_nothing_is_fetched_without_a_slot():
    plan = LayerPlan((0, 2, 3, 4), (5,), (5,))
    assert plan_fault(plan, WORKLOAD, VIEW) is None
    assert "no scratch slot" in (plan_fault(plan, WORKLOAD, ResidencyView({0}, {}, slots=0)) or "")


def swaps(*made):
    """In layer 1 of 2 with 8 experts: residents 0, 1, 2 here and 5, 6 in layer 0; 3 and 4 fetched, 2 and 7 protected."""
    return swaps_fault(
        list(made) if made != (None,) else None, 1, 2, 8, {0, 1, 2}, [3, 4], {2, 7}, [{5, 6}].__getitem__
    )


def test_sound_swaps():
    assert swaps(Swap(0, 3), Swap(1, 6)) is None
    assert swaps(Swap(5, 3, 0), Swap(0, 4, 1)) is None


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ([None], "returned None, which is no list of Swap"),
        ([(0, 3)], "which is no list of Swap"),
        ([Swap(0, 3), Swap(0, 4)], "evicts expert 0 of layer 1 twice"),
        ([Swap(6, 3)], "evicts expert 6 of layer 1, which is no resident"),
        ([Swap(0, 1)], "loads expert 1, which is a resident already"),
        ([Swap(0, 3), Swap(1, 3)], "loads expert 3 twice"),
        ([Swap(0, 8)], "swaps 8, which is no expert: they are 0 to 7"),
        ([Swap(-1, 3)], "swaps -1"),
        ([Swap(0, "3")], "swaps '3'"),
        ([Swap(0, None)], "swaps None"),
        ([Swap(True, 3)], "swaps True"),
        ([Swap(5, 3, False)], "takes a slot of layer False"),
        ([Swap(2, 3)], "swaps expert 2, which is protected"),
        ([Swap(0, 7)], "swaps expert 7, which is protected"),
        ([Swap(5, 3, 2)], "takes a slot of layer 2, of 2"),
        ([Swap(5, 6, 0)], "takes a slot of layer 0 for expert 6, which was not fetched"),
        ([Swap(0, 3, 0)], "evicts expert 0 of layer 0, which is no resident"),
    ],
)
def test_swaps_that_cannot_be_made(made, fault):
    assert fault in (swaps(*made) or "")


def chosen(*experts, free=2):
    return prefetch_fault(list(experts), [Forecast(3, [1] * 6, VIEW, 1.0)], 6, free)


@pytest.mark.parametrize(
    ("experts", "fault"),
    [
        ([(3, 4), (3, 5), (3, 6)], "asks for 3 experts where 2 slots are free"),
        ([(3, 4), (3, 4)], "asks for expert 4 of layer 3 twice"),
        ([(3, 6)], "asks for 6, which is no expert"),
        ([(3, 0)], "asks for expert 0 of layer 3, which is there or on its way"),
        ([(3, 2)], "asks for expert 2 of layer 3, which is there or on its way"),
        ([(2, 4)], "asks for an expert of layer 2, of which it was told nothing"),
        ([(3.0, 4)], "asks for an expert of layer 3.0, of which it was told nothing"),
        ([4], "which is no list of (layer, expert)"),
    ],
)
def test_prefetches_that_cannot_be_made(experts, fault):
    assert chosen((3, 4), (3, 5)) is None
    assert fault in (chosen(*experts) or "")


def test_forecasts_are_of_later_layers_and_all_their_experts():
    assert forecasts_fault([(2, [0.0] * 6)], 1, 3, 6) is None
    assert "layer 1" in (forecasts_fault([(1, [0.0] * 6)], 1, 3, 6) or "")
    assert "layer 3" in (forecasts_fault([(3, [0.0] * 6)], 1, 3, 6) or "")
    assert "layer 2.0" in (forecasts_fault([(2.0, [0.0] * 6)], 1, 3, 6) or "")
    assert "layer True" in (forecasts_fault([(True, [0.0] * 6)], 0, 3, 6) or "")
    assert "of 5 experts" in (forecasts_fault([(2, [0.0] * 5)], 1, 3, 6) or "")


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ((0, 0), "expert 0 twice"),
        ((0, 6), "starts with 6"),
        ((0.5,), "starts with 0.5"),
        ((True,), "starts with True"),
    ],
)
def test_the_first_residents(ids, fault):
    assert initial_fault((0, 5), 6) is None
    assert fault in (initial_fault(ids, 6) or "")


class Raising(CachePolicy):
    def initial(self, layer):
        return [0] * 2

    def observe(self, layer, workload, resident, fetched=(), protected=frozenset(), signals=None):
        if layer == 0:
            return []
        return [] if workload[0] else workload["no such thing"]


class Late(PrefetchPolicy):
    def foresee(self, layer, workload, signals=None):
        return [(0, workload)]

    def plan(self, forecasts, costs):
        return 1 / 0


def test_the_error_says_which_policy_where_in_which_layer_and_step(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    decisions = Decisions(Policies(create("assign", "cpu"), Late(), Raising(2, 6, 2)), 2, 6)

    def observe(layer, workload):
        return decisions.observe(layer, workload, {0, 1}, [], set(), None, [{0, 1}, {0, 1}].__getitem__)

    assert (observe(0, WORKLOAD), observe(1, WORKLOAD)) == ([], [])
    with pytest.raises(DaliError) as caught:
        observe(1, [0] * 6)
    first = Raising.observe.__code__.co_firstlineno
    assert caught.value.problem == (
        f"The cache policy at tests/policies/test_decisions.py, line {first + 3}, raises TypeError (list indices must be "
        "integers or slices, not str) (layer 1, step 2)."
    )
    with pytest.raises(DaliError, match=r"prefetch policy .* foresees layer 0, .* \(layer 1, step 1\)"):
        decisions.foresee(1, WORKLOAD, None)
    with pytest.raises(DaliError, match=r"raises ZeroDivisionError \(division by zero\) \(layer 1, step 1\)"):
        decisions.prefetch(1, [], COSTS, 4)
    with pytest.raises(DaliError, match=r"starts with expert 0 twice \(layer 1, at the start\)"):
        decisions.initial(1)
