"""Explained steps over a GPU, on a stand-in for its driver: the answers stay, and every expert of a plan has its time."""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
from test_gpu_model import answers, directory, expected, load

from dali.errors import DaliError
from dali.measure.explained import Explained
from dali.replay.explain import events
from trace_events import of, read

__all__ = ["directory", "expected"]
LANES = {"cpu": ["cpu"], "gpu": ["resident", "ahead", "copied"], "link": ["copied"]}


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({}, "kernels"),
        ({}, "torch"),
        ({"policy": "fiddler"}, "torch"),
        ({"n_cpu_moe": 1, "vram": "200KiB"}, "kernels"),
    ],
)
def test_every_expert_of_a_plan_has_its_time_in_its_lane(
    driver, directory, expected, monkeypatch, options, by
):
    if by == "torch":  # computes all but the experts
        monkeypatch.setattr("dali.offload.build.gpu_model", lambda gpu, loaded, decoder: None)
    llm = load(directory, **options)
    told = answers(llm)  # by the compiled planner, where there is one
    explained = Explained(llm)
    llm.telemetry.clear()
    llm.engine.forget()  # by torch, a prompt whose beginning is known is not the same to the bit
    assert answers(llm) == told
    assert by == "torch" or told == expected
    assert driver.races == []
    steps, total = explained.steps(), llm.telemetry.total()
    assert sum(step.counts["cpu"] for step in steps) == total.cpu
    assert sum(step.counts["copied"] for step in steps) == total.fetched
    assert (
        sum(step.counts["resident"] + step.counts["ahead"] for step in steps)
        == total.resident + total.prefetched
    )
    assert len(steps) == total.steps
    for step in steps:
        assert step.seconds > 0
        for lane, places in LANES.items():
            mine = [one for one in step.slices if one.lane == lane and "tokens" in one.told]
            wanted = sorted(one.expert for one in step.reasons if one.place in places)
            assert sorted(one.told["expert"] for one in mine) == wanted
            assert all(one.end >= one.start >= step.began - 1 for one in mine)
    for lane in LANES:
        mine = sorted((one.start, one.end) for step in steps for one in step.slices if one.lane == lane)
        assert all(one[1] <= two[0] + 2e-6 for one, two in pairwise(mine))
    assert sum(step.lane_seconds("cpu") for step in steps) == pytest.approx(total.cpu_seconds, rel=0.05)
    assert of(read(events.explained(steps, explained.about)), "X")
    assert "times are measured" in explained.table()
    llm.close()


def test_after_a_failure_it_goes_on_and_closing_gives_back_what_times_were_told_by(
    driver, directory, expected
):
    gc.collect()
    before = driver.held
    llm = load(directory)
    explained = Explained(llm)
    for call in ("cuLaunchKernel", "cuEventElapsedTime"):
        driver.fail(call, 9, 700)
        with pytest.raises(DaliError, match="ILLEGAL_ADDRESS"):
            answers(llm)
        driver.fail("", 0, 0)
        assert answers(llm) == expected
    assert driver.races == []
    assert len({step.step for step in explained.steps()}) > 3
    llm.close()
    del llm, explained
    gc.collect()
    assert driver.held == before
