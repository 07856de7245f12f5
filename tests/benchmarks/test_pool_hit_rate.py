"""What the comparison with chance draws, and its fixed set, by hand."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from replay.tiny_traces import random_trace, trace_of


@pytest.fixture(scope="module")
def script():
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "policies"))
    try:
        yield import_module("pool_hit_rate")
    finally:
        sys.path.pop()


def test_the_best_fixed_set_reads_each_of_its_experts_once(script):
    trace = trace_of([[0, 1], [0, 2], [0, 1], [3, 1]], 4)
    used = script.uses(trace, script.forwards(trace, 1))
    assert script.fixed(used, 2) == 4 / 8  # 0 and 1 are used three times each
    assert script.fixed(used, 4) == 4 / 8


def test_as_many_are_drawn_as_were_used_and_those_that_are_likely(script):
    trace = random_trace(answer=30)
    used = script.uses(trace, script.forwards(trace, 2))
    odds = np.where(np.roll(used, -1, axis=0), 0.996, 0.004)  # all but certain
    made, steps = script.drawn(trace, used, odds)
    again = script.uses(made, steps)
    assert (again.sum(2) == used.sum(2)).all()
    assert (again & used).sum() > 0.97 * used.sum()


def test_a_certain_order_is_found_likely(script):
    trace = trace_of([[step % 3] for step in range(60)], 4)
    used = script.uses(trace, script.forwards(trace, 1))
    odds, usual = script.estimated(used)
    assert odds[40, 0].argmax() == 41 % 3
    assert usual[-1, 0].tolist() == [np.float32(20 / 60)] * 3 + [0.0]
