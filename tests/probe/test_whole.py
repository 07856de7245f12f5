"""All of a machine, measured by a made-up clock on small sizes: a profile that is whole, or none."""

from __future__ import annotations

import os
from itertools import count
from types import SimpleNamespace

import pytest

from dali.errors import DaliError
from dali.hardware.cost import CostModel, ExpertSize, disk_costs
from dali.hardware.profile import ACCELERATOR, DISK, PLAIN, STEP, UNITS, Profile
from dali.kernels import native
from dali.probe import dense, disk, experts, memory, whole
from dali.probe.reading import Reading
from dali.probe.step import overheads
from measured import MACHINE

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="needs the compiled kernels")


@pytest.fixture
def small(monkeypatch):
    """Everything there is to measure, in the least sizes, by a clock that goes on by 10 ms each time it is looked at."""
    times = count()
    for module, name, value in [
        (experts, "SHAPES", ((256, 32), (256, 256))),
        (experts, "OTHERS", ((256, 64),)),
        (experts, "TOKENS", (1, 2)),
        (experts, "CHECKED", (1,)),
        (dense, "SHAPES", ((16, 256), (64, 256))),
        (dense, "TOKENS", (1, 4)),
        (dense, "CONTEXT", 64),
        (dense, "PROMPT", 8),
        (dense, "PASSED", (1, 2)),
        (disk, "FILE", 2**24),
        (whole, "BESIDE", (1,)),
        (memory, "LEAST", 2**22),
        (memory, "CACHES", 0),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("dali.probe.memory.native.read_seconds", lambda memory: 0.01)
    monkeypatch.setattr("dali.probe.step.shipped_model", lambda: (decoded(), decoded(6.0, 8), prompted(), 8))
    monkeypatch.setattr("dali.probe.whole.check_gpu", _no_gpu)
    return lambda: next(times) / 100


def _no_gpu(device):
    raise DaliError("There is none.", "Buy one.")


def decoded(seconds=1.0, batch=1):
    test = SimpleNamespace(generate=10, batch=batch)
    return SimpleNamespace(seconds=[seconds] * 3, shares={"rest": 0.2}, test=test)


def prompted():
    return SimpleNamespace(seconds=[0.5, 0.5, 0.5])


def test_a_step_is_shared_out_between_its_layers_and_the_rest():
    # 100 ms a token: 20 of the rest, and 10 of each layer
    found = overheads(lambda: (decoded(), decoded(6.0, 8), prompted(), 8))
    assert found.step.value == pytest.approx(0.02)
    assert found.layer.value == pytest.approx(0.01)
    assert found.sequence.value == pytest.approx((0.12 - 0.02) / 7)  # 600 ms a step of 8, a fifth of it
    assert found.prompt_layer.value == pytest.approx(0.06)  # 500 ms without those 20, of 8 layers


def test_steps_ten_times_apart_are_refused():
    apart = SimpleNamespace(seconds=[1.0, 11.0, 1.0, 11.0, 11.0])
    with pytest.raises(DaliError, match="11 times apart"):
        overheads(lambda: (decoded(), decoded(6.0, 8), apart, 8))


def test_a_profile_is_whole_and_says_where_each_figure_is_from(small):
    parts = []
    threads = native.threads()
    profile = whole.measure(lambda part, share: parts.append((part, share)), small, MACHINE)
    assert dict(parts) == whole.PARTS
    assert native.threads() == threads
    never = {*ACCELERATOR, "link_contended", *(PLAIN if not hasattr(os, "posix_fadvise") else ())}
    assert set(profile.figures) == set(UNITS) - never
    assert {*DISK, *STEP} <= set(profile.figures)
    assert profile.label == "measured"
    assert profile.machine == MACHINE
    assert all(figure.source.startswith("dali bench hw") for figure in profile.figures.values())
    kinds = {(table.kind, table.beside) for table in profile.tables}
    assert kinds == {("experts", ""), ("experts", "reads"), ("linear", ""), ("router", "")}
    assert {table.format for table in profile.tables if table.kind == "experts"} == set(experts.FORMATS)
    assert profile == Profile.from_json(profile.to_json(), "it")


def test_replays_and_plans_take_it(small):
    profile = whole.measure(lambda part, share: None, small, MACHINE)
    model = CostModel(profile, ExpertSize(256, 128, 3, {"q5k": 70000}), "q5k", 4, accelerator=False)
    assert all(0 < seconds < 100 for seconds in model.costs.cpu[1:])
    assert disk_costs(profile).depth >= 1


def test_what_was_clamped_is_said(small, monkeypatch):
    quiet = whole.measure(lambda part, share: None, small, MACHINE).notes
    assert not any("contradict" in note or "faster than memory" in note for note in quiet)
    # 32 heads of queries to 4 of keys take nine times as long as 8 to 8: more than the scores are more.
    monkeypatch.setattr(
        "dali.probe.dense._decoding",
        lambda pool, clock, heads, groups: Reading({8: 1.0, 32: 9.0}[heads], 0, 3),
    )
    monkeypatch.setattr("dali.probe.memory.native.read_seconds", lambda memory: 1e6)
    profile = whole.measure(lambda part, share: None, small, MACHINE)
    assert profile["cpu_bandwidth"] == profile["memory_bandwidth"]
    assert sum("faster than memory alone" in note for note in profile.notes) == 1
    assert sum("attention contradict each other" in note for note in profile.notes) == 1


@pytest.mark.parametrize("alone", [1.5, 1.0 - 1e-15])
def test_a_prompt_that_takes_no_longer_for_more_is_said(monkeypatch, alone):
    monkeypatch.setattr(dense, "_prompt", lambda clock, before: Reading(1.0 if before else alone, 0, 3))
    rate, query, note = dense.prompt_attention(None)
    earlier, each = (
        dense.CONTEXT - dense.PROMPT,
        4 * dense.HEADS * dense.WIDTH,
    )  # operations of a token with one before it
    own = sum(range(1, dense.PROMPT + 1))
    assert rate.value == pytest.approx(each * (dense.PROMPT * earlier + own))
    assert query.value == dense.NOTHING
    assert "took hardly longer" in note


def test_a_disk_that_cannot_be_measured_is_said_and_the_rest_is_kept(small, monkeypatch):
    monkeypatch.setattr("dali.probe.disk.SPARE", 2**40)
    profile = whole.measure(lambda part, share: None, small, MACHINE)
    assert not profile.has_disk
    assert any("The disk was not measured." in note for note in profile.notes)


def test_without_compiled_kernels_nothing_is_measured(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    with pytest.raises(DaliError, match="missing or turned off"):
        whole.measure(lambda part, share: None)


def test_too_little_memory_is_refused():
    with pytest.raises(DaliError, match="takes 768 MiB of memory, and 100 MiB are free"):
        memory.pool_bytes(cache=0, free=100 * 2**20)
    assert memory.pool_bytes(cache=2**26, free=2**40) == 2**29


def test_threads_are_doubled_and_all():
    assert [memory.counts(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_call_of_experts_is_told_apart_from_its_experts():
    class Call:  # 5 us, and 2 for each expert
        seconds = staticmethod(lambda count, tokens: (5e-6 + count * 2e-6) / count)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experts, "Experts", lambda *arguments: Call)
        found = experts.call_seconds(None, count().__next__)
    assert found.value == pytest.approx(5e-6)
    readings = {1: experts.Reading((5e-6 + 8 * 2e-6) / 8, 0, 3), 64: experts.Reading(3e-6, 0, 3)}
    alone = experts.without_call(readings, found.value)
    assert alone[1].value == pytest.approx(2e-6)
    assert alone[64].value == pytest.approx(1.5e-6)  # two a call: half of what was read is left


def test_readings_end_before_a_call_would_take_too_long():
    found = experts.read_points(lambda tokens: experts.Reading(0.01 * tokens, 0, 3))
    assert list(found) == [1, 2]  # eight experts of 4 tokens would take 0.32 s


def test_figures_whose_readings_contradict_each_other_are_left_out_but_not_many(small, monkeypatch):
    def contradict(*arguments):
        raise DaliError("Readings of it are 11 times apart.", "Again.")

    monkeypatch.setattr("dali.probe.dense.call_seconds", contradict)
    profile = whole.measure(lambda part, share: None, small, MACHINE)
    assert "cpu_call" not in profile.figures
    assert any("11 times apart. It was left out." in note for note in profile.notes)
    monkeypatch.setattr("dali.probe.dense._table", contradict)
    with pytest.raises(DaliError, match="7 figures have readings ten times apart"):
        whole.measure(lambda part, share: None, small, MACHINE)
