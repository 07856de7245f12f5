"""How a budget of RAM is shared out: what is counted once, and what a context that was asked for may take."""

from __future__ import annotations

from typing import Any

import pytest

import dali
from dali.errors import DaliError
from dali.kernels import native
from dali.llm import LLM
from dali.loading import budget, on_disk, room
from dali.offload import ram
from dali.step.size import Reservation
from dali.store.disk_pool import DiskPlan, DiskPool
from families import random_model, save_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
OWN = 10 * 2**30  # bytes that the process is said to have
LEAST = 3  # slots


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads with so many bytes beside what the process has and a step takes; and the slots that come of it."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    path = save_model(random_model("olmoe"), tmp_path / "model")
    grown: list[int] = []

    def nothing_fits(candidates: Any, smallest: Any, experts: int, dense_bytes: int, *rest: Any) -> Any:
        error = room.DoesNotFit("RAM is full.", "Never mind.")
        error.layouts, error.dense_bytes = candidates[0], dense_bytes
        raise error

    def load(free: int, **options: Any) -> tuple[LLM, int]:
        plan = DiskPlan(OWN + 2**20 + free, True, LEAST)
        monkeypatch.setattr(on_disk, "_plan", lambda *given: plan)
        llm = dali.load(path, quant="w8", cache_ram=0, **options)
        return llm, grown[-1]

    monkeypatch.setattr(budget, "choose_layouts", nothing_fits)
    monkeypatch.setattr(ram, "own_memory", lambda: OWN)
    monkeypatch.setattr(ram, "step_bytes", lambda *given: 2**20)
    monkeypatch.setattr(room, "FEWEST_TOKENS", 4)
    monkeypatch.setattr(DiskPool, "grow", lambda self, slots: grown.append(slots))
    return load


def kept(llm: LLM) -> int:
    """Bytes of the keys and values of a whole context."""
    step = llm.engine.scheduler.step_tokens
    return ram.state_size(llm.engine).nbytes(Reservation(llm.loaded.ctx_size, step))


def test_what_experts_have_already_is_not_counted_twice(load):
    llm, _ = load(2**24, ctx_size=16)
    pool = llm.loaded.pool
    assert pool.held == LEAST  # they were needed when the model was tried
    assert load(kept(llm) + 8 * pool.slot_bytes, ctx_size=16)[1] == 8 + LEAST


def test_a_context_that_is_asked_for_may_take_all_but_a_token_s_experts(load):
    llm, _ = load(2**24, ctx_size=64)
    whole, least = kept(llm), (LEAST - llm.loaded.pool.held) * llm.loaded.pool.slot_bytes
    assert load(whole + least, ctx_size=64)[0].loaded.ctx_size == 64
    with pytest.raises(DaliError, match=r"keys and values of 64 tokens"):
        load(whole + least - 1, ctx_size=64)


def test_a_context_that_nobody_asked_for_takes_a_quarter(load):
    llm, _ = load(2**30)
    longest, whole = llm.loaded.ctx_size, kept(llm)
    llm, _ = load(2 * whole)
    assert 0 < llm.loaded.ctx_size < longest
    assert kept(llm) <= (2 * whole + llm.loaded.pool.held * llm.loaded.pool.slot_bytes) / 4
