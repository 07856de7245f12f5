"""Steps as Chrome's trace events."""

from __future__ import annotations

from itertools import pairwise

from dali.replay.explain import events
from dali.replay.explain.measured import Watch
from dali.replay.explain.slices import LayerStep, Slice
from dali.telemetry import Telemetry
from trace_events import of, read, whole_nanoseconds


def test_a_measured_run_of_the_cpu() -> None:
    telemetry = Telemetry()
    telemetry.count_experts(2, 4)
    watch = Watch(telemetry, 2)

    def step() -> None:
        telemetry.workload[:, :2] += 1
        for layer in range(2):
            telemetry.layer(layer).seconds += 1e-9 * (layer + 1)

    for _ in range(3):
        watch(step)
    assert len(of(read(events.explained(list(watch.steps), "x")), "C")) == 6


def test_slices_without_a_gap_stay_so_whatever_their_lengths() -> None:
    ends = [0.1 + 1e-7 * sum(1.1**power for power in range(count)) for count in range(60)]
    step = LayerStep(1, 0, 1, ends[0], ends[-1] - ends[0])
    step.slices = [Slice("cpu", "0", begin, end, {}) for begin, end in pairwise(ends)]
    found = [event for event in of(read(events.explained([step], "x")), "X") if event["name"] == "0"]
    begins = [whole_nanoseconds(event["ts"]) for event in found]
    assert begins[0] == 0
    assert begins[1:] == [
        whole_nanoseconds(event["ts"]) + whole_nanoseconds(event["dur"]) for event in found[:-1]
    ]


def test_no_step_is_a_file_all_the_same() -> None:
    assert of(read(events.explained([], "x")), "X") == []


def test_what_a_clock_measured_a_little_too_early_begins_when_the_one_before_it_has_ended() -> None:
    step = LayerStep(1, 0, 1, 0.0, 9e-6)
    step.slices = [
        Slice("gpu", name, begin * 1e-6, end * 1e-6, {})
        for name, begin, end in (("a", 0, 4), ("b", 3.5, 6), ("c", 6, 9), ("d", 7, 8))
    ]
    found = {
        event["name"]: (event["ts"], event["dur"]) for event in of(read(events.explained([step], "x")), "X")
    }
    assert found["a"] == (0, 4)
    assert found["b"] == (4, 2)
    assert found["c"] == (6, 3)
    assert found["d"] == (7, 1)  # within
