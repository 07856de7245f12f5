from __future__ import annotations

from types import SimpleNamespace

from dali.engine.scheduler import Scheduler


def sequence(prompt: int, computed: int = 0):
    self = SimpleNamespace(tokens=[0] * prompt, prompt_tokens=prompt, computed=computed)
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
    assert [advance(scheduler) for _ in range(3)] == [[8, 0], [4, 4], [1, 1]]


def test_decoding_sequences_never_wait_for_a_prefill():
    scheduler = Scheduler(4)
    for s in (sequence(100), decoding(3), decoding(5)):
        scheduler.add(s)
    assert [advance(scheduler) for _ in range(2)] == [[2, 1, 1], [2, 1, 1]]


def test_prefill_advances_even_when_decoding_fills_the_step():
    scheduler = Scheduler(2)
    for s in (decoding(3), decoding(4), decoding(5), sequence(9)):
        scheduler.add(s)
    assert advance(scheduler) == [1, 1, 1, 1]


def test_rope_regimes_take_turns():
    scheduler = Scheduler(8, limits=(10,))
    for s in (decoding(3), decoding(20), decoding(4)):
        scheduler.add(s)
    assert [advance(scheduler) for _ in range(3)] == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_three_regimes_take_turns_and_a_length_at_the_limit_is_within_it():
    scheduler = Scheduler(8, limits=(10, 30))
    for s in (decoding(9), decoding(10), decoding(29), decoding(30)):
        scheduler.add(s)
    assert [advance(scheduler) for _ in range(4)] == [[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]
