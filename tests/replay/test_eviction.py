"""Caches alone: exact logs by hand, the references for public traces, and Belady as a bound."""

import numpy as np
import pytest
from tiny_traces import public_trace, random_trace, trace_of

from dali.errors import UsageError
from dali.replay.eviction import POLICIES, replay
from dali.replay.steps import forwards


def hits(ids, slots, policy, experts=6, **options):
    trace = trace_of(ids, experts)
    return int(replay(trace, forwards(trace, 1), slots, policy, **options).found[0])


def test_an_event_is_classified_before_anything_changes():
    # 0 and 1 come together into a cache of one: both miss, and only one of them stays.
    assert hits([[0, 1], [0, 1]], 1, "lru") == 1
    assert hits([[0, 1], [0, 1]], 2, "lru") == 2


def test_among_equals_the_lower_id_goes_first():
    assert hits([[0, 1], [2, 3], [1, 3]], 3, "lru") == 2  # 0 went for 2 and 3, 1 stayed
    assert hits([[0, 1], [2, 3], [0, 3]], 3, "lru") == 1


def test_lru_and_lfu_differ_where_a_favourite_rests():
    ids = [[0], [0], [0], [1], [2], [0]]
    assert hits(ids, 2, "lru") == 2
    assert hits(ids, 2, "lfu") == 3


def test_age_wears_a_count_down():
    favourite_long_ago = [[0]] * 20 + [[1], [2]] * 60
    assert hits(favourite_long_ago, 2, "lfu") < hits(favourite_long_ago, 2, "lfu-age")


def test_mrs_weighs_the_last_events_most():
    # after 0 0 0 1: S(0) = 1/16 + 1/8 + 1/4, S(1) = 1/2, so 0 goes although it was used more often
    assert hits([[0], [0], [0], [1], [2], [1], [0]], 2, "mrs") == 3
    assert hits([[0], [0], [0], [1], [2], [1], [0]], 2, "lfu") == 3  # here it is 1 that went: 0 0, 0


def test_belady_keeps_what_comes_back_soonest():
    assert hits([[0], [1], [2], [0], [1], [2]], 2, "belady") == 2
    assert hits([[0], [1], [2], [0], [1], [2]], 2, "belady-bypass") == 4  # 0 and 1 from the start, 2 never


def test_cold_starts_forget():
    trace = trace_of([[0], [0], [0], [0]], 4, sequences=[2, 2])
    steps = forwards(trace, 1)
    assert replay(trace, steps, 1, "lru").found.tolist() == [3]
    assert replay(trace, steps, 1, "lru", cold=True).found.tolist() == [2]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_bounds_and_extremes(policy, batch):
    trace = random_trace(layers=2, answer=20)
    steps = forwards(trace, batch)
    rates = [replay(trace, steps, slots, policy).rate for slots in (0, 2, 4, 8)]
    assert rates[0] == 0
    assert rates == sorted(rates)
    for slots, rate in zip((2, 4, 8), rates[1:], strict=True):
        assert rate <= replay(trace, steps, slots, "belady-bypass").rate
        if policy != "belady-bypass":
            assert rate <= replay(trace, steps, slots, "belady").rate


def test_random_eviction_follows_the_seed():
    trace = random_trace(answer=40)
    steps = forwards(trace, 1)
    rates = [replay(trace, steps, 4, "random", seed).rate for seed in (1, 1, 2)]
    assert rates[0] == rates[1] != rates[2]


def test_scores_lead_mrs_where_there_are_any():
    trace = random_trace(answer=40)
    favour = np.zeros((trace.tokens, trace.layers, trace.experts), np.float32)
    favour[..., 0] = 1.0
    scored = random_trace(answer=40, scores=favour)
    steps = forwards(trace, 1)
    assert replay(trace, steps, 3, "mrs").rate != replay(scored, steps, 3, "mrs").rate


def test_unknown_policies_are_refused():
    with pytest.raises(UsageError, match="optimal"):
        hits([[0]], 1, "optimal")


# Event-atomic references at 25 % slots; each second (OLMoE), each fourth layer (Kimi-Linear), from an empty cache.
REFERENCE = {
    ("olmoe-1b-7b_dev", 2): {"random": 0.575, "lru": 0.592, "lfu": 0.594, "lfu-age": 0.602, "mrs": 0.596, "belady": 0.720},
    ("kimi-linear-48b-a3b_dev", 4): {
        "random": 0.704, "lru": 0.737, "lfu": 0.748, "lfu-age": 0.753, "mrs": 0.738, "belady": 0.847,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "every"), REFERENCE)
def test_reference_hit_rates(name, every):
    trace = public_trace(name, every)
    steps = forwards(trace, 1)
    for policy, expected in REFERENCE[name, every].items():
        seeds = range(4) if policy == "random" else [0]
        rate = np.mean([replay(trace, steps, trace.experts // 4, policy, seed).rate for seed in seeds])
        assert rate == pytest.approx(expected, abs=0.01), policy
