from __future__ import annotations

from types import SimpleNamespace

from dali.engine.scheduler import Scheduler


def sequence(prompt: int, computed: int = 0, state_bytes: int = 0):
    self = SimpleNamespace(
        tokens=[0] * prompt, prompt_tokens=prompt, computed=computed, state_bytes=state_bytes
    )
    self.draft = []
    self.pending = prompt - computed
    self.in_prefill = computed < prompt
    return self


def decoding(length: int):
    self = sequence(length, length)
    self.tokens.append(0)
    self.pending = 1
    return self


def advance(scheduler: Scheduler) -> list[int]:
    """Run a step as the engine would; returns the tokens each live sequence got."""
    plan = {id(s): n for s, n in scheduler.next()}
    for s in scheduler.live:
        s.computed += plan.get(id(s), 0)
        s.in_prefill = s.computed < s.prompt_tokens
        s.pending = max(len(s.tokens) - s.computed, 0 if s.in_prefill else 1)
    return [plan.get(id(s), 0) for s in scheduler.live]


def test_nothing_live_plans_nothing():
    assert Scheduler(8).next() == []


def test_prefill_is_cut_into_chunks_oldest_first():
    scheduler = Scheduler(8)
    for s in (sequence(12), sequence(5)):
        scheduler.add(s)
        scheduler.join()
    assert [advance(scheduler) for _ in range(3)] == [[8, 0], [4, 4], [1, 1]]


def test_drafts_take_their_part_of_a_step():
    scheduler = Scheduler(8)
    drafting = decoding(5)
    drafting.draft = [1, 2, 3]
    for s in (sequence(12), drafting, decoding(3)):
        scheduler.add(s)
        scheduler.join()
    assert advance(scheduler) == [3, 4, 1]


def test_decoding_sequences_never_wait_for_a_prefill():
    scheduler = Scheduler(4)
    for s in (sequence(100), decoding(3), decoding(5)):
        scheduler.add(s)
        scheduler.join()
    assert [advance(scheduler) for _ in range(2)] == [[2, 1, 1], [2, 1, 1]]


def test_prefill_advances_even_when_decoding_fills_the_step():
    scheduler = Scheduler(2)
    for s in (decoding(3), decoding(4), decoding(5), sequence(9)):
        scheduler.add(s)
        scheduler.join()
    assert advance(scheduler) == [1, 1, 1, 1]


def test_rope_regimes_take_turns():
    scheduler = Scheduler(8, limits=(10,))
    for s in (decoding(3), decoding(20), decoding(4)):
        scheduler.add(s)
        scheduler.join()
    assert [advance(scheduler) for _ in range(3)] == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_three_regimes_take_turns_and_a_length_at_the_limit_is_within_it():
    scheduler = Scheduler(8, limits=(10, 30))
    for s in (decoding(9), decoding(10), decoding(29), decoding(30)):
        scheduler.add(s)
        scheduler.join()
    assert [advance(scheduler) for _ in range(4)] == [[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]


def admit(scheduler: Scheduler, beside: int = 0) -> None:
    while scheduler.waiting and scheduler.has_room(scheduler.waiting[0], beside):
        scheduler.join()


def test_without_a_budget_nobody_waits():
    scheduler = Scheduler(8)
    for s in (sequence(3, state_bytes=10**15), sequence(4, state_bytes=10**15)):
        scheduler.add(s)
    admit(scheduler)
    assert len(scheduler.live) == 2


def test_who_fits_beside_the_live_ones_joins_first_come_first_served():
    scheduler = Scheduler(8)
    scheduler.budget = 100
    first, second, large, small = (sequence(3, state_bytes=size) for size in (60, 40, 90, 1))
    for s in (first, second, large, small):
        scheduler.add(s)
    admit(scheduler)
    assert scheduler.live == [first, second]  # to the last byte
    scheduler.remove(second)
    admit(scheduler)
    assert scheduler.live == [first]  # the small one would fit, but came after the large one
    scheduler.remove(first)
    admit(scheduler)
    assert scheduler.live == [large, small]
    assert not scheduler.waiting


def test_what_is_kept_beside_takes_room_too():
    scheduler = Scheduler(8)
    scheduler.budget = 100
    scheduler.add(sequence(3, state_bytes=60))
    admit(scheduler, beside=41)
    assert scheduler.live == []
    admit(scheduler, beside=40)
    assert len(scheduler.live) == 1


def test_who_waits_can_leave():
    scheduler = Scheduler(8)
    one, other = sequence(3), sequence(4)
    for s in (one, other):
        scheduler.add(s)
    scheduler.remove(one)
    admit(scheduler)
    assert scheduler.live == [other]
