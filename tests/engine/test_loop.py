"""The loop that owns an engine's steps, over an engine that counts instead of computing."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dali.engine.loop import Loop
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.errors import DaliError


class Counting:
    """Each step gives every live sequence its next number."""

    def __init__(self) -> None:
        self.live: list[Sequence] = []
        self.fresh = 0
        self.most = 0

    def add(self, sequence: Sequence, fresh: bool = False) -> None:
        self.live.append(sequence)
        self.most = max(self.most, len(self.live))
        self.fresh += fresh

    def abort(self, sequence: Sequence) -> None:
        if sequence in self.live:
            sequence.abort()
            self.live.remove(sequence)

    def step(self) -> bool:
        for sequence in list(self.live):
            logits = torch.zeros(100)
            logits[len(sequence.tokens)] = float("nan") if sequence.tokens[0] == 99 else 1.0
            sequence.advance(logits)
            if sequence.finish_reason is not None:
                self.live.remove(sequence)
        return bool(self.live)


def sequence(first: int, limit: int) -> Sequence:
    return Sequence(Request((first,), limit, SamplingParams(temperature=0)))


def test_sequences_run_to_their_own_ends():
    engine = Counting()
    sequences = [sequence(1, 3), sequence(2, 6), sequence(3, 4)]
    Loop(engine).complete(sequences)
    assert [s.generated for s in sequences] == [[1, 2], [1, 2, 3, 4, 5], [1, 2, 3]]
    assert engine.most == 3


def test_so_many_at_once_and_the_next_when_one_leaves():
    engine, steps = Counting(), []
    sequences = [sequence(1, 3), sequence(2, 6), sequence(3, 4)]
    Loop(engine).complete(
        sequences, at_once=2, fresh=True, after_step=lambda live: steps.append([s.tokens[0] for s in live])
    )
    assert engine.most == 2
    assert engine.fresh == 3
    assert steps == [[1, 2], [1, 2], [2, 3], [2, 3], [2, 3]]


def test_the_error_of_one_ends_all_and_leaves_nothing_behind():
    engine = Counting()
    sequences = [sequence(1, 9), sequence(99, 9), sequence(2, 9)]
    with pytest.raises(DaliError, match="not finite"):
        Loop(engine).complete(sequences, at_once=2)
    assert engine.live == []
    assert sequences[0].finish_reason == "abort"
    assert sequences[2].finish_reason is None


def test_no_sequence_is_no_work():
    Loop(Counting()).complete([])


class Meeting(Counting):
    """Steps slowly enough for other threads to come meanwhile, and tells when two of them step at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.steps = 0
        self.torn = False

    def step(self) -> bool:
        self.inside += 1
        self.torn |= self.inside > 1
        self.steps += 1
        time.sleep(0.001)
        more = super().step()
        self.inside -= 1
        return more

    def add(self, sequence: Sequence, fresh: bool = False) -> None:
        self.torn |= self.inside > 0
        super().add(sequence, fresh)

    def abort(self, sequence: Sequence) -> None:
        self.torn |= self.inside > 0
        super().abort(sequence)


def test_threads_share_steps_and_each_has_its_own_answer():
    engine = Meeting()
    loop = Loop(engine)
    sequences = [sequence(first, first + 30) for first in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda one: loop.complete([one]), sequences))
    assert [s.generated for s in sequences] == [list(range(1, first + 30)) for first in range(6)]
    assert not engine.torn
    assert engine.live == []
    assert engine.steps < sum(len(s.generated) for s in sequences) / 2


def test_a_thread_that_fails_leaves_the_others_going():
    engine = Meeting()
    loop = Loop(engine)
    sequences = [sequence(1, 40), sequence(99, 120), sequence(2, 40)]

    def run(one: Sequence) -> str:
        try:
            loop.complete([one])
        except DaliError:
            return "failed"
        return "done"

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(run, sequences)) == ["done", "failed", "done"]
    assert not engine.torn
    assert engine.live == []


def test_an_interrupt_of_the_thread_that_steps_hands_the_steps_on():
    engine = Meeting()
    loop = Loop(engine)
    plain, stepped = engine.step, []

    def step() -> bool:
        stepped.append(threading.get_ident())
        if len(stepped) == 5:
            raise KeyboardInterrupt
        return plain()

    engine.step = step  # type: ignore[method-assign]
    sequences = [sequence(1, 40), sequence(2, 40)]
    outcomes: dict[int, str] = {}

    def run(number: int) -> None:
        try:
            loop.complete([sequences[number]])
            outcomes[number] = "done"
        except KeyboardInterrupt:
            outcomes[number] = "interrupted"

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes.values()) == ["done", "interrupted"]
    assert engine.live == []


def test_a_stream_that_python_collects_within_a_step_leaves_after_it():
    engine = Meeting()
    loop = Loop(engine)
    forgotten, kept = sequence(1, 50), sequence(2, 20)
    forgotten.text = Words()  # type: ignore[assignment]
    stream = loop.stream(forgotten)
    next(stream)
    plain = engine.step

    def step() -> bool:
        nonlocal stream
        stream = None  # type: ignore[assignment]  # its last reference: the generator is closed here
        return plain()

    engine.step = step  # type: ignore[method-assign]
    loop.complete([kept])
    assert forgotten.finish_reason == "abort"
    assert kept.finish_reason == "length"
    assert not engine.torn
    assert engine.live == []


class Words:
    """A sequence's text with a piece for each token."""

    def __init__(self) -> None:
        self.pieces: deque[str] = deque()

    def push(self, token: int) -> bool:
        self.pieces.append(str(token))
        return False

    def finish(self) -> None:
        self.pieces.append(".")


def test_a_forked_process_is_refused_and_not_left_waiting():
    engine = Counting()
    loop = Loop(engine)
    begun = sequence(1, 5)
    begun.text = Words()  # type: ignore[assignment]
    loop._process = os.getpid() + 1  # as a child sees it
    for use in (lambda: loop.complete([sequence(0, 2)]), lambda: next(loop.stream(begun))):
        with pytest.raises(DaliError, match=r"was forked.*\n.*\"spawn\""):
            use()
    loop.abort([begun])  # as Python does with streams that the child forgets
    assert loop.forked
    assert engine.live == []
