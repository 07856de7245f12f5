"""Memory for keys and values that is counted: who waits, who is refused, what is given up, and that no byte more is taken."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dali
from dali.engine.budget import StateBudget
from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.llm import LLM
from dali.offload.vram import state_size
from dali.step.size import Reservation
from families import random_model, save_model

STEP = 5  # tokens, so that windows are compacted often
CONTEXT = 64


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss", "phimoe"])
def llm(request, tmp_path_factory) -> LLM:
    """Without windows, with some, and with a rotary embedding that has sequences computed anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        model = save_model(random_model(request.param), tmp_path_factory.mktemp("model"))
        return dali.load(model, quant="w8", ctx_size=CONTEXT)


@pytest.fixture
def limit(llm) -> Iterator[object]:
    """Gives the engine a budget: what one sequence of so many tokens takes, and returns that budget."""

    def follow(tokens: int | None) -> StateBudget:
        size = state_size(llm.engine)
        budget = StateBudget(size.nbytes(Reservation(tokens or 1, STEP)), size)
        llm.engine.follow(time.perf_counter, None, False, STEP, None if tokens is None else budget)
        return budget

    yield follow
    follow(None)
    assert not llm.engine.scheduler.live
    assert not llm.engine.scheduler.waiting


class Counted:
    """Bytes of all keys and values there are, and the most there ever were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        plain = torch.Tensor.new_empty

        def new_empty(self_: torch.Tensor, *shape: int) -> torch.Tensor:
            tensor = plain(self_, *shape)
            if len(shape) == 3:  # as only keys and values have
                self.now += tensor.nbytes
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self.free, tensor.nbytes)
            return tensor

        monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)

    def free(self, nbytes: int) -> None:
        self.now -= nbytes


@pytest.fixture
def counted(monkeypatch) -> Counted:
    return Counted(monkeypatch)


def prompt(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def sequences(llm: LLM, requests: list[tuple[list[int], int]]) -> list[Sequence]:
    return [llm.sequence(ids, temperature=0, max_tokens=new, ignore_eos=True) for ids, new in requests]


def run(llm: LLM, requests: list[tuple[list[int], int]]) -> list[list[int]]:
    """What each (prompt, tokens to generate) gets, all at once."""
    asked = sequences(llm, requests)
    llm.loop.complete(asked)
    return [sequence.generated for sequence in asked]


def most_live(llm: LLM, requests: list[tuple[list[int], int]]) -> int:
    found = 0

    def look(live: list[Sequence]) -> None:
        nonlocal found
        found = max(found, len(llm.engine.scheduler.live))

    llm.loop.complete(sequences(llm, requests), after_step=look)
    return found


LONG = prompt(1, 40)
REQUESTS = [
    (prompt(0, 9), 12),
    (LONG, 20),
    (LONG[:30], 5),  # shrinks what it takes over
    ([*LONG, *prompt(2, 3)], 20),  # lets it grow
    (prompt(3, 2), 3),
    (prompt(3, 2), 60),
    (prompt(4, 55), 8),
    (LONG, 2),
]


@pytest.mark.parametrize("tokens", [63, 80, 150])
def test_no_byte_more_is_taken_than_was_counted_and_the_answers_are_the_same(llm, limit, counted, tokens):
    limit(None)
    expected = [run(llm, [request])[0] for request in REQUESTS]
    budget = limit(tokens)
    counted.most = counted.now
    for together in (1, 3, len(REQUESTS)):
        found = []
        for begin in range(0, len(REQUESTS), together):
            found += run(llm, REQUESTS[begin : begin + together])
        assert found == expected
    assert counted.now <= budget.nbytes
    # What a layer that moves has twice comes on top.
    assert budget.nbytes / 3 < counted.most <= budget.nbytes + budget.size.moving(Reservation(CONTEXT, STEP))


def test_threads_share_the_budget(llm, limit, counted):
    limit(None)
    expected = [run(llm, [request])[0] for request in REQUESTS]
    budget = limit(80)
    counted.most = counted.now
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda request: run(llm, [request])[0], REQUESTS))
    assert found == expected
    assert counted.most <= budget.nbytes + budget.size.moving(Reservation(CONTEXT, STEP))


def test_two_small_ones_run_together_and_two_large_ones_one_by_one(llm, limit):
    limit(63)
    assert most_live(llm, [(prompt(1, 6), 4), (prompt(2, 6), 4)]) == 2
    assert most_live(llm, [(prompt(1, 40), 20), (prompt(2, 40), 20)]) == 1


def test_a_small_one_that_continues_a_large_one_leaves_room_for_others(llm, limit):
    limit(63)
    run(llm, [(LONG, 20)])
    small = sequences(llm, [(LONG[:6], 4), (prompt(5, 6), 4)])
    live = []
    llm.loop.complete(small, after_step=lambda _: live.append(len(llm.engine.scheduler.live)))
    assert max(live) == 2
    assert small[0].cached_tokens in (5, 0)  # 0: of another length's rotation, or behind a window


def test_what_was_kept_is_given_up_for_whom_it_is_in_the_way_of_and_for_no_other(llm, limit):
    limit(63)
    (kept,) = sequences(llm, [(prompt(1, 6), 4)])
    llm.loop.complete([kept])
    assert kept.state.nbytes > 0
    waiting = sequences(llm, [(prompt(2, 6), 4), (prompt(3, 50), 10)])
    for sequence in waiting:
        llm.engine.add(sequence)
    llm.engine.step()
    assert llm.engine.last.sequence is kept
    while llm.engine.step():
        pass
    assert kept.state.nbytes == waiting[0].state.nbytes == 0  # though they are held here
    assert llm.engine.last.sequence is waiting[1]


def test_one_that_never_fits_is_refused_before_anything_is_computed(llm, limit):
    limit(30)
    fits, never = sequences(llm, [(prompt(1, 6), 4), (prompt(2, 25), 20)])
    with pytest.raises(DaliError, match=r"up to 44 tokens .* keys and values.*\n.*25 tokens, or allow"):
        llm.loop.complete([fits, never])
    assert fits.computed == 0
    with pytest.raises(DaliError, match="up to 44 tokens"):
        next(llm.loop.stream(never))


def test_one_as_large_as_the_budget_fits(llm, limit):
    limit(CONTEXT - 1)  # the last token of an answer is not computed
    (found,) = run(llm, [(prompt(1, 20), CONTEXT)])
    assert len(found) == CONTEXT - 20


def test_streams_by_turns_wait_for_each_other_and_one_that_is_closed_waits_no_longer(llm, limit):
    limit(63)
    streams = [llm.loop.stream(one) for one in sequences(llm, [(prompt(seed, 30), 20) for seed in range(3)])]
    next(streams[0])
    waiting = sequences(llm, [(prompt(9, 30), 20)])[0]
    llm.engine.add(waiting)
    llm.engine.abort(waiting)
    assert waiting.finish_reason == "abort"
    next(streams[1])  # the first has run to its end meanwhile
    assert len(llm.engine.scheduler.live) == 1
    streams[1].close()
    assert [len(list(stream)) > 0 for stream in streams] == [True, False, True]


def test_scoring_takes_its_room_from_what_was_kept_and_from_no_one_else(llm, limit, counted):
    budget = limit(63)
    run(llm, [(prompt(1, 30), 20)])
    counted.most = counted.now
    rows = torch.cat([rows.clone() for rows in llm.engine.score(llm.sequence(prompt(2, 60)))])
    assert len(rows) == 60
    assert counted.most <= budget.nbytes + budget.size.moving(Reservation(CONTEXT, STEP))
    stream = llm.loop.stream(sequences(llm, [(prompt(1, 30), 20)])[0])
    next(stream)
    with pytest.raises(DaliError, match=r"60 tokens cannot be scored beside 1 sequence"):
        next(llm.engine.score(llm.sequence(prompt(2, 60))))
    stream.close()
