"""Hits of a pool without time: by hand, and as the compiled pool and timed replays have them."""

import pytest

from dali.kernels import native
from dali.policies import create
from dali.policies import names as policies
from dali.replay.bounds import pooled_hits
from dali.replay.disk.hits import pooled
from dali.replay.steps import forwards
from dali.store.disk_pool import DiskPool
from dali.store.packed.builder import ensure_store
from replay.tiny_traces import random_trace, trace_of
from tiny_stores import RandomExperts, header, silent


def pool(name, trace, slots):
    return create(
        "pool",
        name,
        layers=trace.layers,
        experts=trace.experts,
        slots=slots,
        read_seconds=[1.0] * trace.layers,
    )


def test_by_hand():
    trace = trace_of([[0, 1], [0, 2], [1, 2], [3, 2]], 4)
    # 0 1 are read; 0 stays and 2 is read for 1; 2 stays and 1 is read for 0; 2 stays and 3 is read for 1.
    hits = pooled(trace, forwards(trace, 1), pool("lru", trace, 2))
    assert (hits.found.tolist(), hits.lookups.tolist()) == ([3], [8])


def test_an_event_larger_than_the_pool_passes_through_it():
    trace = trace_of([[0, 1, 2], [0, 1, 2]], 4)
    hits = pooled(trace, forwards(trace, 1), pool("lru", trace, 2))
    assert hits.lookups.tolist() == [6]
    assert hits.found[0] <= 2


@pytest.mark.parametrize("name", policies("pool"))
@pytest.mark.parametrize("slots", [3, 8, 20])
def test_no_policy_finds_more_than_the_offline_optimum(name, slots):
    trace = random_trace(answer=30, seed=slots)
    steps = forwards(trace, 1)
    hits = pooled(trace, steps, pool(name, trace, slots))
    best, lookups = pooled_hits(trace, steps, slots, cold=True)
    assert int(hits.lookups.sum()) == lookups
    assert int(hits.found.sum()) <= best


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("slots", [4, 7, 12])
def test_a_live_pool_finds_as_much_as_replays_say(tmp_path, slots):
    """The same layers ask for the same experts, of a store on disk: compiled code and `fading` decide alike, expert by expert."""
    trace = random_trace(sequences=2, prompt=0, answer=60, layers=3, experts=5, top_k=2, seed=slots)
    described = header(layers=trace.layers, experts=trace.experts)
    ensure_store(tmp_path / "store", described, RandomExperts(), silent)
    live, steps = DiskPool(tmp_path / "store", slots, slots, depth=2), forwards(trace, 1)
    for step in steps:
        for layer in range(trace.layers):
            live.lease(layer, sorted(trace.ids[step.rows[0], layer].tolist()))
    counters = live.counters()
    hits = pooled(trace, steps, pool("fading", trace, slots))
    assert list(counters.hits) == hits.found.tolist()
    assert [a + b for a, b in zip(counters.hits, counters.misses, strict=True)] == hits.lookups.tolist()
    assert 0 < int(hits.found.sum()) < int(hits.lookups.sum())
