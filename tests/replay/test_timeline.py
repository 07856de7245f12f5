"""The modelled timeline: by hand, within its bounds, and the same decisions as a live run."""

import numpy as np
import pytest
from tiny_traces import SHAPE, random_trace

import dali
from accelerated import slow_machine
from dali.errors import DaliError
from dali.hardware import profile
from dali.measure.recorder import record
from dali.policies import Policies, create
from dali.policies.cache import CachePolicy, Swap
from dali.replay import timeline as module
from dali.replay.shapes import shape_of
from dali.replay.steps import forwards
from dali.replay.timeline import Timeline, dense_seconds

MODEL = SHAPE.costs(profile.load("paper"), 512)
COSTS = MODEL.costs


def policies(trace, capacity, assign="two_lane", prefetch="none", cache="static", seed=0):
    sizes = {"layers": trace.layers, "experts": trace.experts, "capacity": capacity, "seed": seed}
    return Policies(create("assign", assign), create("prefetch", prefetch), create("cache", cache, **sizes))


def replayed(trace, capacity, batch=1, guarded=True, **kinds):
    replay = Timeline(trace, policies(trace, capacity, **kinds), SHAPE, MODEL, capacity, guarded)
    return replay.run(forwards(trace, batch))


def test_everything_on_the_cpu_takes_as_long_as_by_hand():
    trace = random_trace(prompt=0)
    result = replayed(trace, 4, assign="cpu")
    experts = COSTS.handover + 2 * COSTS.cpu[1] + COSTS.launch
    layer = dense_seconds(SHAPE, MODEL)(1) + experts
    assert result.seconds == pytest.approx(trace.tokens * trace.layers * layer)
    assert (result.tokens, result.on_accelerator, result.copies) == (48, 0, 0)


def test_everything_resident_takes_one_launch_a_layer():
    trace = random_trace(prompt=0)
    result = replayed(trace, 8, assign="gpu")
    layer = dense_seconds(SHAPE, MODEL)(1) + 2 * COSTS.gpu[1] + 2 * COSTS.launch
    assert result.seconds == pytest.approx(trace.tokens * trace.layers * layer)
    assert result.hit_rate == 1.0


def test_every_absent_expert_is_copied_where_nothing_stays():
    trace = random_trace(prompt=0, sequences=1)
    result = replayed(trace, 1, assign="gpu")
    assert result.copies == result.lookups.sum() - result.hits.sum()
    assert result.seconds > result.copies * COSTS.link


@pytest.mark.parametrize(
    ("guarded", "copies", "allowed"), [(True, 1, [2, 3]), (True, 1.1, [3]), (False, 9, [2, 3])]
)
def test_swaps_that_copy_wait_for_the_link(guarded, copies, allowed):
    """Expert 3 is in scratch, 2 is not."""
    replay = Timeline(random_trace(), policies(random_trace(), 2), SHAPE, MODEL, 2, guarded)
    swaps = replay._guards.allow(0, [Swap(0, 2), Swap(1, 3)], [3], copies * COSTS.link)
    assert [swap.load for swap in swaps] == allowed


def test_prompts_are_counted_apart():
    result = replayed(random_trace(prompt=5), 4)
    assert (result.prefill_tokens, result.tokens) == (20, 48)
    assert 0 < result.prefill_seconds < result.seconds


def test_the_same_replay_twice():
    trace = random_trace()
    first, second = (replayed(trace, 3, batch=2, cache="workload") for _ in range(2))
    assert first.seconds == second.seconds
    assert np.array_equal(first.hits, second.hits)


def test_perfect_predictions_are_fetched_ahead():
    ids = random_trace().ids
    later = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
    trace = random_trace(predicted={("residual", 1): later})
    kinds = {"assign": "gpu", "prefetch": "residual", "guarded": False}
    result = replayed(trace, 2, **kinds)
    without = replayed(random_trace(), 2, **kinds)  # the signal is missing
    assert without.prefetched == 0 < result.prefetched
    assert result.seconds < without.seconds


def test_a_cache_that_evicts_the_same_expert_for_all_is_refused():
    """Its residents would grow without limit, and its hit rate above what the optimum reaches."""

    class Growing(CachePolicy):
        def observe(self, layer, workload, resident, fetched=(), protected=frozenset(), signals=None):
            return [Swap(min(resident), load) for load in fetched]

    trace = random_trace()
    some = policies(trace, 2, assign="gpu")
    some.cache = Growing(trace.layers, trace.experts, 2)
    with pytest.raises(DaliError, match=r"test_timeline.py, line \d+, evicts expert \d of layer \d twice"):
        Timeline(trace, some, SHAPE, MODEL, 2, True).run(forwards(trace, 1))


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        yield str(slow_machine(folder))


@pytest.mark.parametrize(
    ("assign", "prefetch", "cache"),
    [
        ("gpu", "none", "lru"),
        ("cpu_on_miss", "none", "static"),
        ("two_lane", "none", "lfu"),
        ("greedy", "next_gate", "workload"),
    ],
)
def test_a_live_run_decides_the_same(machine, monkeypatch, assign, prefetch, cache):
    """On the simulated device, sequences one after another; its clock knows activation copies, which the lane model rounds."""
    vram = 85 * dali.load(quant="w8", ram="4GiB").layout.record_bytes
    kinds = {"assign": assign, "prefetch": prefetch, "cache": cache}
    llm = dali.load(quant="w8", ram="4GiB", device=f"sim:{machine}", vram=vram, seed=3, **kinds)
    assert llm.executor is not None
    residency, began = llm.executor.residency, llm.executor.device.now()
    prompts = [llm.encode(text) for text in ("Once upon a time there was", "The king had three sons and")]
    greedy = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
    trace = record(llm, prompts, **greedy)
    live, seconds = llm.telemetry.total(), llm.executor.device.now() - began
    if prefetch != "none":
        trace = record(llm, prompts, hidden=True, **greedy)  # calibrates, so it is no run to compare with

    monkeypatch.setattr(module, "SCRATCH", residency.scratch_slots)
    shape = shape_of(trace, "own")
    capacity = residency.resident_slots // trace.layers
    chosen = policies(trace, capacity, assign, prefetch, cache, seed=3)
    model = shape.costs(profile.load(machine), 512)
    result = Timeline(trace, chosen, shape, model, capacity, True).run(forwards(trace, 1))
    # Gate inputs are kept in half precision: of two experts predicted nearly alike, the other one may be fetched.
    slack = 0 if prefetch == "none" else 0.02 * live.lookups
    assert result.lookups.sum() == live.lookups
    assert result.on_accelerator == pytest.approx(live.lookups - live.cpu, abs=slack)
    assert result.prefetched == pytest.approx(live.prefetched, abs=slack)
    if assign != "cpu_on_miss":  # where a resident may stay unused
        assert result.hits.sum() == pytest.approx(live.resident, abs=slack)
    assert result.seconds + result.prefill_seconds == pytest.approx(seconds, rel=0.03)
