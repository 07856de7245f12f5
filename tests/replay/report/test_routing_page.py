"""The page of a trace: what its plots show, against a slow count by hand."""

from __future__ import annotations

import pytest

from dali.replay import eviction
from dali.replay.report.routing import fading_hit_rate, page, reuse_distances
from dali.replay.steps import forwards
from replay.tiny_traces import random_trace, trace_of


def test_distances_are_lru_stack_distances():
    # One layer: 0 1, 2 3, 0 2, 0 1. 0 comes again after 2 and 3, 2 and then 0 at once, and 1 after three.
    trace = trace_of([[0, 1], [2, 3], [0, 2], [0, 1]], 4)
    found = reuse_distances(trace, forwards(trace, 1))
    # Ties of one step count for nobody: 3, used with 2, is not between 2's uses.
    assert found[0].tolist() == [2, 0, 1, 1]


def test_lru_finds_what_comes_again_within_its_slots():
    """With one expert a token the hits of LRU follow from the distances."""
    trace = random_trace(sequences=1, prompt=0, answer=60, layers=2, experts=6, top_k=1)
    steps = forwards(trace, 1)
    found = reuse_distances(trace, steps)
    for slots in (1, 3, 5):
        assert eviction.replay(trace, steps, slots, "lru").found.sum() == found[:, :slots].sum()


def test_fading_is_a_cache_between_nothing_and_all():
    trace = random_trace()
    steps = forwards(trace, 1)
    assert 0 < fading_hit_rate(trace, steps, 2) < fading_hit_rate(trace, steps, 6) < 1
    assert fading_hit_rate(trace, steps, 8) == pytest.approx(1)


def test_the_page_holds_three_plots():
    told = page(random_trace())
    assert told.count("<svg") == 3
    assert "belady" in told
    assert "fading" in told
