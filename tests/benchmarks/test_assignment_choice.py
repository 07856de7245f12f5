"""What decisions are drawn, who is right, and what plans take, by hand."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from dali.hardware.cost import ExpertCosts
from dali.hardware.profile import load
from dali.probe.watch import Moment
from measured import TABLES, measured
from replay.tiny_traces import random_trace, trace_of

ROOT = Path(__file__).parents[2]
COSTS = ExpertCosts([0, 10, 20], [0, 1, 1], link=4.5, link_contended=4.5, launch=1, handover=3, call=2)


@pytest.fixture(scope="module")
def script():
    before, folders = set(sys.modules), [str(ROOT / "benchmarks" / name) for name in ("policies", "tools")]
    sys.path[:0] = folders
    try:
        yield SimpleNamespace(
            choice=import_module("assignment_choice"), draw=import_module("place_decisions")
        )
    finally:
        del sys.path[: len(folders)]
        for name in set(sys.modules) - before:
            if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]


def test_a_single_sequence_is_cut_into_as_many_as_a_batch_has(script):
    trace = trace_of([[0, 1], [2, 3], [0, 2], [1, 3]], 4)
    routing = script.draw.Routing(trace)
    for seed in range(8):  # one token of each half
        workload = routing.workload(2, Random(seed))
        assert workload in ([2, 1, 1, 0], [1, 2, 0, 1], [1, 0, 2, 1], [0, 1, 1, 2], [1, 1, 1, 1])
    assert routing.workload("prompt", Random(0)) == [2, 2, 2, 2]


def test_a_decisions_experts_are_all_of_one_step(script):
    trace = random_trace(sequences=4, answer=12, experts=8)
    routing = script.draw.Routing(trace)
    for seed in range(20):
        decision = routing.decision(4, 0.25, Random(seed))
        assert 1 <= decision.tokens <= 4
        assert decision.tokens + sum(decision.beside) <= 4 * 2
    step = routing.step(4, 0.0, Random(1))
    assert step.resident == ()
    assert sum(step.absent) == 8
    assert list(step.absent) == sorted(step.absent, reverse=True)


def test_who_picks_the_sooner_place_is_right_and_near_ties_do_not_count(script):
    outcome = script.draw.outcome
    assert outcome(predicted=9.0, measured=12.0, other=10.0) == script.draw.Outcome(True, True, False)
    assert outcome(predicted=11.0, measured=30.0, other=10.0) == script.draw.Outcome(True, False, True)
    assert not outcome(predicted=9.0, measured=10.9, other=10.0).apart


def test_plans_are_compared_by_what_their_calls_take(script):
    step = script.draw.Step(resident=(), absent=(2, 1))
    # All on the CPU: the handover, and 20 + 10. One copied: the CPU 3 + 10, and 4.5, a launch and a kernel
    # meanwhile. Both: 9, a launch and two kernels.
    spans = [script.draw.span(step, count, COSTS) for count in script.draw.splits(step)]
    assert spans == [33, 13, 12]
    # The call that is measured has in it what the handover says of it: 3 - 2 + 6.
    assert script.draw.span(step, 1, COSTS, measured=6.0) == 7
    found = script.draw.planned(step, COSTS, {0: 30.0, 1: 6.0, 2: 0.0})
    assert (found.apart, found.right) == (True, False)  # both copied, said to be best, are 12 beside 7
    assert found.regret == pytest.approx(12 / 7 - 1)


def test_the_accelerators_side_is_the_published_ones_on_a_faster_link(script):
    cpu, there = measured(), load("rtx4090-desktop")
    costs = script.draw.costs_of(script.draw.joined(cpu, there, 2), (2048, 768), "w4", 2654208, 8)
    assert costs.cpu[1] == dict(TABLES[0].points)[1]
    assert costs.link == pytest.approx(there["link_latency"] + 2654208 / (2 * there["link_bandwidth"]))
    assert costs.gpu[1] == pytest.approx(2654208 / there["gpu_bandwidth"])


def test_plans_follow_what_calls_are_seen_to_take_beyond_a_band(script):
    steps = [{"absent": (1, 1), "cpu": {"0": 44.0, "1": 24.0, "2": 0.0}}]  # twice as long
    assert script.choice.correction(steps, [0, 10], call=2) == pytest.approx(2, rel=1e-3)
    steps = [{"absent": (1, 1), "cpu": {"0": 26.4}}]
    assert script.choice.correction(steps, [0, 10], call=2) == 1


def test_what_others_took_is_a_share_of_all_processors(script):
    begin, end = Moment(1, 0, 10, 0.5, 0, 0), Moment(4, 0, 20, 2.5, 5, 5)
    assert script.choice.others(begin, end) == pytest.approx(0.1)
    assert np.isclose(script.choice.others(end, end), 0)


def test_what_is_kept_is_not_measured_again(script, tmp_path):
    parts = script.choice.Parts(tmp_path, seconds=0)
    (tmp_path / "cell.json").write_text("kept")
    assert parts.make("cell", lambda: "anew") == "kept"
    with pytest.raises(SystemExit, match="run this again"):
        parts.make("other", lambda: "anew")
