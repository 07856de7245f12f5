import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.policies import create, names
from dali.policies.cache import Swap
from dali.policies.cache.fading import FADING, SLOW_SHARE


def policy(name, experts=6, capacity=2, layers=1, **options):
    return create("cache", name, layers=layers, experts=experts, capacity=capacity, **options)


def test_every_layer_starts_with_the_same_number_of_random_experts():
    cache = policy("workload", experts=64, capacity=16, layers=8, seed=3)
    starts = [cache.initial(layer) for layer in range(8)]
    assert all(len(set(start)) == 16 and set(start) <= set(range(64)) for start in starts)
    assert len(set(starts)) == 8
    assert starts == [policy("lru", experts=64, capacity=16, layers=8, seed=3).initial(n) for n in range(8)]
    assert starts != [policy("lru", experts=64, capacity=16, layers=8, seed=4).initial(n) for n in range(8)]


def test_a_cache_larger_than_the_layer_holds_the_layer():
    assert policy("static", experts=4, capacity=9).initial(0) == (0, 1, 2, 3)


def test_no_cache_holds_nothing():
    assert policy("none", capacity=5).initial(0) == ()
    assert policy("none").observe(0, [1] * 6, set(), fetched={1}) == []


def test_a_static_cache_stays():
    cache = policy("static")
    assert cache.observe(0, [0, 0, 9, 9, 9, 9], {0, 1}, fetched={2, 3}) == []


def test_workload_swaps_the_busiest_for_the_idlest_at_the_windows_end():
    cache = policy("workload", window=2, swaps=2)
    assert cache.observe(0, [1, 0, 5, 0, 2, 0], {0, 1}) == []
    # Sums 1, 1, 5, 3, 3, 0: out go 0 and 1 (1 each, by id), in come 2 (5) and 3 (3, before 4 by id).
    assert cache.observe(0, [0, 1, 0, 3, 1, 0], {0, 1}) == [Swap(0, 2), Swap(1, 3)]
    # A new window starts from 0: 2 has 1, 3 nothing, 0 has 1 again, which is not more than 2's but than 3's.
    assert cache.observe(0, [1, 0, 1, 0, 0, 0], {2, 3}) == []
    assert cache.observe(0, [0, 0, 0, 0, 0, 0], {2, 3}) == [Swap(3, 0)]


def test_workload_swaps_only_for_a_strictly_higher_score():
    cache = policy("workload", window=1, swaps=2)
    assert cache.observe(0, [3, 3, 3, 3, 0, 0], {0, 1}) == []
    assert cache.observe(0, [3, 2, 3, 3, 0, 0], {0, 1}) == [Swap(1, 2)]
    assert cache.observe(0, [0, 0, 0, 0, 0, 0], {0, 1}) == []


def test_workload_keeps_to_its_number_of_swaps():
    assert policy("workload", window=1, swaps=1).observe(0, [0, 0, 1, 2, 3, 0], {0, 1}) == [Swap(0, 4)]
    assert policy("workload", window=1, swaps=0).observe(0, [0, 0, 1, 2, 3, 0], {0, 1}) == []


def test_the_papers_window_and_swaps_are_the_defaults():
    assert (policy("workload", experts=128).window, policy("workload", experts=128).swaps) == (4, 8)
    assert policy("workload", experts=8).swaps == 1


def test_lru_keeps_what_was_fetched_for_what_was_used_longest_ago():
    cache = policy("lru")
    assert cache.observe(0, [1, 1, 0, 0, 0, 0], {0, 1}) == []
    assert cache.observe(0, [1, 0, 1, 0, 0, 0], {0, 1}, fetched={2}) == [Swap(1, 2)]
    # Both residents were used in this step: nothing goes, though 3 and 4 were fetched.
    assert cache.observe(0, [1, 0, 1, 1, 1, 0], {0, 2}, fetched={3, 4}) == []
    # 5 came by prefetch and was not used; 0 and 2 were last used in the same step: the lower id goes.
    assert cache.observe(0, [0, 0, 0, 1, 0, 0], {0, 2}, fetched={3, 5}) == [Swap(0, 3)]


def test_what_the_cpu_computed_is_not_kept():
    cache = policy("lru")
    assert cache.observe(0, [0, 0, 1, 1, 0, 0], {0, 1}, fetched=()) == []


def test_lfu_counts_steps_not_tokens_and_remembers():
    cache = policy("lfu")
    assert cache.observe(0, [9, 0, 1, 0, 0, 0], {0, 1}) == []
    assert cache.observe(0, [0, 1, 1, 0, 0, 0], {0, 1}, fetched={2}) == [
        Swap(0, 2)
    ]  # one use each: the idle one
    # Uses: 0 once, 1 once, 2 twice. 0 comes back for 1, used less often than 2.
    assert cache.observe(0, [1, 0, 0, 0, 0, 0], {1, 2}, fetched={0}) == [Swap(1, 0)]


def test_fading_keeps_fetched_experts_of_higher_score():
    cache = policy("fading")
    # Only 2, with two tokens, is above the lowest resident: 3 has as many as that.
    assert cache.observe(0, [1, 3, 2, 1, 0, 0], {0, 1}, fetched={2, 3}) == [Swap(0, 2)]
    # 2's two have faded by a third to 2 x 1.4 x 2 / 3 = 1.87; 3's and the new one are 0.93 + 1.4 = 2.33; 0 has 0.93.
    assert cache.observe(0, [0, 0, 0, 1, 0, 0], {1, 2}, fetched={3, 0}) == [Swap(2, 3)]


def test_fading_asks_for_one_absent_expert_where_nothing_was_fetched():
    cache = policy("fading")
    assert cache.observe(0, [0, 0, 1, 2, 2, 0], {0, 1}) == [Swap(0, 3)]
    # 3 is under way, and 4 (1.87) is the highest that is left; 1's two new tokens (2.8) are more than its 1.4 a step later.
    assert cache.observe(0, [0, 0, 0, 0, 0, 0], {1, 3}, protected={3}) == [Swap(1, 4)]
    assert cache.observe(0, [0, 2, 0, 0, 0, 0], {1, 3}, protected={3}) == []


def test_fading_forgets_fast_and_then_slowly():
    def scores_after(steps, *workload):
        """Whether expert 0's tokens, so many steps ago, are less than expert 2's now."""
        cache = policy("fading", experts=3, capacity=1)
        for _ in range(40):  # the first steps fade faster
            assert cache.observe(0, [0, 0, 0], {0}) == []
        assert cache.observe(0, [workload[0], 0, 0], {0}) == []
        for _ in range(steps):
            assert cache.observe(0, [0, 0, 0], {0}) == []
        return cache.observe(0, [0, 0, workload[1]], {0}) == [Swap(0, 2)]

    # Eleven steps later 8 tokens are worth 8 x 0.85 ** 11 + 0.4 x 8 x 0.97 ** 11 = 3.63, two new ones 2.8, three 4.2.
    assert not scores_after(10, 8, 2)
    assert scores_after(10, 8, 3)
    # After 26 nearly all is the slow share: 0.12 + 0.4 x 8 x 0.97 ** 26 = 1.57, one new token 1.4; after 61 it is 0.5.
    assert not scores_after(25, 8, 1)
    assert scores_after(60, 8, 1)


@pytest.mark.parametrize(
    ("workload", "swaps"),
    [
        ([10, 8, 0, 0, 0, 0], []),  # as many as 8 count,
        ([10, 7, 0, 0, 0, 0], [Swap(1, 0)]),
        ([40, 30, 20, 0, 0, 0], []),  # or twice an even routing's 90 / 6,
        ([40, 29, 21, 0, 0, 0], [Swap(1, 0)]),
    ],
)
def test_fading_counts_so_many_tokens_of_one_step(workload, swaps):
    assert policy("fading").observe(0, workload, {1}) == swaps


@pytest.mark.parametrize(("tokens", "swaps"), [(13, []), (14, [Swap(0, 1)])])
def test_fading_is_exact_however_long_it_runs(tokens, swaps):
    cache = policy("fading", experts=3, capacity=1)
    for _ in range(8000):  # 0.85 ** 8000 is no number
        assert cache.observe(0, [2, 1, 0], {0}) == []
    # By then 2 tokens a step are 2 (0.85 / 0.15 + 0.4 x 0.97 / 0.03) = 37.2, and 1 token a step, with 14 new ones, 18.6 + 19.6.
    assert (
        cache.observe(0, [0, tokens, 28], {0}, protected={2}) == swaps
    )  # with 28 beside them all of those count


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_fading_picks_by_score_and_then_by_id(data):
    cache, sums = policy("fading", experts=6, capacity=3), [[0.0] * 6 for _ in FADING]
    resident, few = {0, 2, 4}, st.sets(st.integers(0, 5), max_size=2)
    for step in range(1, 9):
        workload = data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
        protected, fetched = data.draw(few), data.draw(few) - resident
        sums = [
            [
                min(fading, step / (step + 1)) * total + tokens
                for total, tokens in zip(one, workload, strict=True)
            ]
            for fading, one in zip(FADING, sums, strict=True)
        ]
        scores = [round(fast + SLOW_SHARE * slow, 9) for fast, slow in zip(*sums, strict=True)]
        rising = sorted(range(6), key=lambda e: (scores[e], e))
        falling = sorted(range(6), key=lambda e: (-scores[e], e))
        absent = [e for e in falling if e not in resident and e not in protected]
        loads = [e for e in absent if e in fetched] or absent[:1]
        pairs = zip([e for e in rising if e in resident - protected], loads, strict=False)
        expected = [Swap(out, into) for out, into in pairs if scores[into] > scores[out]]
        swaps = cache.observe(0, workload, resident, fetched, protected)
        # Scores that differ by rounding alone may go either way.
        assert [(scores[s.evict], scores[s.load]) for s in swaps] == [
            (scores[s.evict], scores[s.load]) for s in expected
        ]
        resident = resident - {s.evict for s in swaps} | {s.load for s in swaps}


@pytest.mark.parametrize("name", ["lru", "lfu", "workload", "fading"])
def test_layers_do_not_share_state(name):
    options = {"window": 2, "swaps": 1} if name == "workload" else {}
    both, alone = policy(name, layers=2, **options), policy(name, layers=1, **options)
    for step in range(6):
        workload = [step % 2, 0, 1, step % 3, 0, 1]
        both.observe(1, [9, 9, 9, 9, 9, 9], {4, 5}, fetched={0})
        assert both.observe(0, workload, {0, 1}, {2}) == alone.observe(0, workload, {0, 1}, {2})


@pytest.mark.parametrize("name", names("cache"))
@settings(deadline=None)
@given(data=st.data())
def test_swaps_keep_the_capacity_and_spare_the_protected(name, data):
    experts = data.draw(st.integers(1, 8), "experts")
    capacity = data.draw(st.integers(0, experts), "capacity")
    cache = policy(name, experts=experts, capacity=capacity)
    resident = set(cache.initial(0))
    size = len(resident)
    ids = st.sets(st.integers(0, experts - 1))
    for _ in range(data.draw(st.integers(1, 12), "steps")):
        workload = data.draw(st.lists(st.integers(0, 5), min_size=experts, max_size=experts))
        protected, fetched = data.draw(ids), data.draw(ids) - resident
        swaps = cache.observe(0, workload, frozenset(resident), fetched, protected)
        touched = [expert for swap in swaps for expert in (swap.evict, swap.load)]
        assert len(set(touched)) == len(touched)
        assert not set(touched) & protected
        for swap in swaps:
            assert swap.evict in resident
            assert swap.load not in resident
            if name in ("lru", "lfu"):
                assert swap.load in fetched
                assert not workload[swap.evict]
        resident = resident - {swap.evict for swap in swaps} | {swap.load for swap in swaps}
        assert len(resident) == size
