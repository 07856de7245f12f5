"""The benchmark's mixed-integer program against trying every plan."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from assignment_cases import brute_force, random_layer

from dali.policies import create
from dali.policies.lanes import group_size, makespan


@pytest.fixture(scope="module")
def optimum():
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tools"))
    try:
        yield import_module("lane_optimum").optimum
    finally:
        sys.path.pop()


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_the_best_plan(optimum, seed):
    workload, view, costs = random_layer(Random(seed), 6, in_flight=False)
    view = replace(view, slots=min(view.slots, 7))  # the program knows no groups
    assert group_size(view.slots) == 1
    some = makespan(create("assign", "cpu").assign(0, workload, view, costs), workload, view, costs)
    best = brute_force(workload, view, costs)
    found = optimum(workload, view, costs, known=some, seconds=30)
    assert found.found == pytest.approx(best, rel=2e-4)
    assert best * (1 - 2e-4) <= found.bound <= best * (1 + 1e-9)
