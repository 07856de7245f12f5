"""Taking note of steps: it changes nothing, and misses nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tiny_runtime import (
    BATCHES,
    LAYERS,
    STEPS,
    TOP_K,
    Setting,
    expected,
    identical,
    run,
    tiny_executor,
    tiny_model,
)

from dali.replay.explain import events
from dali.replay.explain.clocked import from_clock
from dali.replay.explain.slices import PLACES, explain
from dali.replay.explain.summary import summary
from trace_events import of, read


def explained(journal):
    return explain(journal.since(0), TOP_K, from_clock)


def noted(batch: int, **setting: object):
    """An executor that ran with a journal, and its journal."""
    model = tiny_model()
    executor = tiny_executor(Setting(batch=batch, prefetch="next_gate", **setting), model)
    executor._telemetry.clear()
    executor.device.busy_seconds()
    journal = executor.keep_journal()
    outputs = run(executor, model, batch)
    return executor, journal, outputs


@pytest.mark.parametrize("batch", BATCHES)
def test_outputs_are_the_same_bits_with_a_journal(batch: int) -> None:
    executor, journal, outputs = noted(batch)
    assert identical(outputs, expected(tiny_model(), batch))
    bare = tiny_executor(Setting(batch=batch, prefetch="next_gate"), tiny_model())
    assert identical(outputs, run(bare, tiny_model(), batch))
    assert executor.device.now() == bare.device.now()  # nor does it take modelled time
    assert (journal.begun, len(journal.notes)) == (len(STEPS), len(STEPS) * LAYERS)


@pytest.mark.parametrize("slots", [1, 8, 32])
def test_slices_add_up_to_what_telemetry_counts(slots: int) -> None:
    executor, journal, _ = noted(2, slots=slots)
    steps, total = explained(journal), executor._telemetry.total()
    counts = {
        place: sum(step.counts[place] for step in steps) for place in ("cpu", "resident", "ahead", "copied")
    }
    assert counts["cpu"] == total.cpu
    assert counts["copied"] == total.fetched
    assert counts["resident"] + counts["ahead"] == total.resident + total.prefetched
    assert sum(step.lane_seconds("cpu") for step in steps) == pytest.approx(total.cpu_seconds)
    copied = sum(
        span.end - span.start for note in journal.notes for span in note.spans if span.stream == "copy"
    )
    assert sum(step.lane_seconds("link") for step in steps) == pytest.approx(copied)
    assert sum(step.seconds for step in steps) == pytest.approx(
        total.seconds, rel=0.05
    )  # it may go on after the sum
    for step, note in zip(steps, journal.notes, strict=True):
        for lane, experts in (("cpu", note.plan.cpu), ("gpu", note.plan.gpu), ("link", note.plan.fetch)):
            mine = [one for one in step.slices if one.lane == lane and "tokens" in one.told]
            assert sorted(int(one.what) for one in mine) == sorted(experts)
            assert all(one.told["tokens"] == note.workload[int(one.what)] for one in mine)
        lanes = {lane: [one for one in step.slices if one.lane == lane] for lane in ("cpu", "gpu", "link")}
        for mine in lanes.values():  # a lane does one thing at a time
            assert all(one.end <= two.start + 1e-12 for one, two in pairwise(mine))


@pytest.mark.parametrize("batch", BATCHES)
def test_trace_events_have_every_slice_and_which_experts_were_where(batch: int) -> None:
    _, journal, _ = noted(batch)
    steps = explained(journal)
    found = read(events.explained(steps, "Times are modelled."))
    assert len(of(found, "X")) == sum(len(step.slices) for step in steps) + len(steps) + len(STEPS)
    names = {event["tid"]: event["args"]["name"] for event in of(found, "M") if "tid" in event}
    assert set(names.values()) == {"layers", "CPU", "accelerator", "link"}
    layers = [
        event for event in of(found, "X") if names[event["tid"]] == "layers" and "layer" in event["args"]
    ]
    for event, step in zip(layers, steps, strict=True):
        for place in (one for one in ("cpu", "resident", "ahead", "copied") if step.counts[one]):
            which = event["args"][f"experts {PLACES[place]}"].split(", ")
            assert sorted(map(int, which)) == sorted(one.expert for one in step.reasons if one.place == place)
            assert event["args"][PLACES[place]] == len(which)


def test_the_summary_is_bounded_and_says_what_was_forgotten() -> None:
    _, journal, _ = noted(1)
    told = summary(explained(journal) * 30, journal.begun, "modelled")
    assert len(told.splitlines()) <= 50
    assert told.startswith("Experts of 6 steps; times are modelled")
    journal.notes.popleft()
    while journal.notes[0].step == 1:
        journal.notes.popleft()
    assert summary(explained(journal), journal.begun, "modelled").startswith(
        "Experts of the last 5 of 6 steps"
    )
