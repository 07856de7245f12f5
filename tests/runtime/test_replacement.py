"""Cache replacement on a live layer and its guard, on the modelled clock."""

from __future__ import annotations

from random import Random

import pytest

from dali.policies.guard import SAMPLE, Guard
from runtime.foreseen import anywhere, executor_of, play
from runtime.tiny_runtime import EXPERTS, LAYERS, TOP_K, Setting

TRIAL = -(-Guard().window * SAMPLE // LAYERS)  # steps until the guard could first decide
SLOW = Setting("two_lane", "none", "workload", 16, profile="egpu-x4", scratch=4)


def never(guard: Guard) -> None:
    guard.on = False
    guard.note = lambda cost, benefit: None  # type: ignore[method-assign]


def drifting() -> object:
    """Three busy experts, others from time to time, and others after a while."""
    drawn = [0]

    def draw(random: Random, layer: int) -> list[int]:
        drawn[0] += 1
        begin = 4 * (drawn[0] // 500 % 2)
        return random.sample(range(begin, begin + 3) if random.random() < 0.9 else range(EXPERTS), TOP_K)

    return draw


@pytest.mark.parametrize("assign", ["two_lane", "gpu"])
def test_swaps_stay_on_while_they_follow_the_workload(assign: str) -> None:
    setting = Setting(assign, "none", "workload", 16, profile="egpu-x4", scratch=4)
    executor, states = executor_of(setting), []
    following = play(executor, 3 * TRIAL, drifting(), lambda: states.append(executor.guards.swap.on))
    assert all(states)
    fixed = executor_of(setting)
    never(fixed.guards.swap)
    assert following < play(fixed, 3 * TRIAL, drifting())


def test_swaps_are_switched_off_where_routing_has_no_favourites() -> None:
    executor, states = executor_of(SLOW), []
    swapping = play(executor, 4 * TRIAL, anywhere, lambda: states.append(executor.guards.swap.on))
    assert sum(states) / len(states) < 0.7
    always = executor_of(SLOW)
    always.guards.swap.note = lambda cost, benefit: None  # type: ignore[method-assign]
    assert swapping < play(always, 4 * TRIAL, anywhere)


def test_switched_off_swaps_still_exchange_roles_with_scratch_slots() -> None:
    setting = Setting("gpu", "none", "workload", 16, profile="egpu-x4", scratch=4)
    executor = executor_of(setting)
    never(executor.guards.swap)
    placed = executor.residency.copies
    play(executor, 40, drifting())
    total = executor._telemetry.total()
    assert total.swaps > 0
    assert executor.residency.copies - placed == total.fetched  # none for swaps


@pytest.mark.parametrize("cache", ["lru", "lfu", "static", "none"])
def test_only_window_policies_copy(cache: str) -> None:
    executor = executor_of(Setting("gpu", "none", cache, 16, scratch=4))
    placed = executor.residency.copies
    play(executor, 30, anywhere)
    total = executor._telemetry.total()
    assert executor.residency.copies - placed == total.fetched
    assert (total.swaps > 0) == (cache in ("lru", "lfu"))
    assert [len(executor.residency.residents(layer)) for layer in range(LAYERS)] == [
        0 if cache == "none" else 3
    ] * LAYERS


def test_swaps_that_copy_wait_for_the_link() -> None:
    executor = executor_of(Setting("two_lane", "none", "fading", 16, profile="egpu-x4", scratch=4))
    executor.guards.swap.note = lambda cost, benefit: None  # type: ignore[method-assign]
    placed, queues = executor.residency.copies, []
    play(
        executor,
        40,
        anywhere,
        lambda: queues.append(executor.residency.link_free - executor.device.now()),
    )
    copies = executor.residency.copies - placed - executor._telemetry.total().fetched
    assert copies > 10
    assert max(queues) <= 2 * executor._costs.link
