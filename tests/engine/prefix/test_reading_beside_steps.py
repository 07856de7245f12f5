"""A prefix that has to be read from disk: whoever else is under way goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import dali
from conversing import Greedy, _sequence
from dali.engine.engine import Engine
from dali.engine.prefix import folder as module
from dali.engine.prefix.folder import Folder
from dali.engine.prefix.reading import AT_ONCE
from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.llm import LLM
from families import random_model, save_model
from served import until

PROMPT = torch.randint(3, 97, (64 * 12 + 20,), generator=torch.Generator().manual_seed(0)).tolist()


class Disk:
    """Reads what it is allowed to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.fails: list[BaseException] = []
        self._allowed = threading.Semaphore(0)
        self._read = module.entry_file.read
        patch.setattr(module.entry_file, "read", self._gated)

    def _gated(self, path: str, *arguments: Any) -> Any:
        self.asked.append(path)
        self._allowed.acquire()
        if self.fails:
            raise self.fails.pop()
        return self._read(path, *arguments)

    def allow(self, count: int = 1000) -> None:
        self._allowed.release(count)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        model = save_model(
            random_model("qwen3_moe", max_position_embeddings=1024), tmp_path_factory.mktemp("model")
        )
        with dali.load(model, quant="w8", cache_dir=tmp_path_factory.mktemp("prefixes")) as llm:
            ask(llm, _sequence(PROMPT, 1))
            llm.engine.prefixes.close()
            llm.engine.forget()
            yield llm


@pytest.fixture
def disk(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """That has PROMPT, as nothing else does."""
    llm.engine.forget()
    assert isinstance(llm.engine.prefixes.folder, Folder)
    llm.engine.prefixes.folder._told.clear()
    disk = Disk(monkeypatch)
    yield disk
    disk.allow()


def run(engine: Engine) -> None:
    while engine.step():
        pass


def ask(llm: LLM, sequence: Sequence, fresh: bool = False) -> Sequence:
    llm.loop.complete([sequence], fresh=fresh)
    return sequence


def logits(sequence: Sequence) -> torch.Tensor:
    assert isinstance(sequence.sampler, Greedy)
    return torch.stack(sequence.sampler.logits)


def test_others_are_computed_while_a_prefix_is_read(llm, disk):
    engine, other, waiting = llm.engine, _sequence([5, 6, 7], 40), _sequence([*PROMPT, 5], 3)
    engine.add(other)
    engine.step()
    engine.add(waiting)
    for _ in range(20):
        engine.step()
    assert len(other.generated) == 21
    assert waiting.computed == 0
    until(lambda: len(disk.asked) == AT_ONCE)
    disk.allow()
    run(engine)
    assert waiting.cached_tokens == len(PROMPT)
    assert torch.equal(logits(waiting), logits(ask(llm, _sequence([*PROMPT, 5], 3), fresh=True)))
    assert torch.equal(logits(other), logits(ask(llm, _sequence([5, 6, 7], 40), fresh=True)))


def test_one_who_leaves_while_it_is_read_has_no_more_of_it_read(llm, disk):
    engine, waiting = llm.engine, _sequence([*PROMPT, 5], 3)
    engine.add(waiting)
    assert engine.step()  # nothing to compute, and something to wait for
    until(lambda: len(disk.asked) == AT_ONCE)
    engine.abort(waiting)
    assert not engine.step()
    disk.allow()
    until(lambda: not any(thread.name.startswith("dali-entries") for thread in threading.enumerate()))
    assert len(disk.asked) == AT_ONCE


def test_who_comes_later_waits_for_its_turn_and_then_shares_what_was_read(llm, disk):
    engine, first, second = llm.engine, _sequence([*PROMPT, 5], 2), _sequence([*PROMPT, 6], 2)
    engine.add(first)
    engine.add(second)
    engine.step()
    disk.allow()
    run(engine)
    assert (first.cached_tokens, second.cached_tokens) == (len(PROMPT), len(PROMPT))
    assert len(disk.asked) == len(set(disk.asked)) == 13


def test_what_was_forgotten_meanwhile_is_read_as_well(llm, disk):
    """A half of the prefix is in RAM until the other half is read."""
    disk.allow()
    ask(llm, _sequence(PROMPT[:400], 1))
    engine, waiting = llm.engine, _sequence([*PROMPT, 5], 1)
    with pytest.MonkeyPatch.context() as patch:
        gated = Disk(patch)
        engine.add(waiting)
        engine.step()
        engine.forget()
        gated.allow()
        run(engine)
    assert waiting.cached_tokens == len(PROMPT)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_what_cannot_be_read_is_computed(llm, disk, error):
    disk.fails = [error]
    disk.allow()
    waiting = ask(llm, _sequence([*PROMPT, 5], 1))
    assert 0 <= waiting.cached_tokens < len(PROMPT)
    assert torch.equal(logits(waiting), logits(ask(llm, _sequence([*PROMPT, 5], 1), fresh=True)))


def test_memory_that_runs_out_meanwhile_fails_a_step_and_not_the_next(llm, disk):
    engine, waiting = llm.engine, _sequence([*PROMPT, 5], 1)
    disk.fails = [RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]
    disk.allow()
    engine.add(waiting)
    with pytest.raises(DaliError, match="ran out"):
        run(engine)
    run(engine)
    assert waiting.cached_tokens == len(PROMPT)
