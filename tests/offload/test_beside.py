"""A budget of RAM that has all experts: what is left of it is for sequences and the prefix cache, and for no more."""

from __future__ import annotations

import pytest

import dali
from dali.errors import DaliError
from dali.loading import room
from dali.offload import ram
from dali.step.size import Reservation
from families import random_model, save_model

MIB = 2**20
OWN = 2**30  # bytes that the process is said to have


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads with so many bytes beside what the process has and a step takes."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    path = save_model(random_model("olmoe"), tmp_path / "model")
    monkeypatch.setattr(ram, "step_bytes", lambda *given: MIB)
    monkeypatch.setattr(room, "FEWEST_TOKENS", 4)

    def load(free: int, **options):
        budget = OWN + room.HEADROOM  # more than a tiny model and what must be free beside it
        monkeypatch.setattr(ram, "own_memory", lambda: budget - MIB - free)
        notes: list[str] = []
        llm = dali.load(path, quant="w8", ram=f"{budget // MIB}MiB", notify=notes.append, **options)
        return llm, notes

    return load


def kept(llm, tokens: int) -> int:
    step = llm.engine.scheduler.step_tokens
    return llm.engine.budget.size.nbytes(Reservation(tokens, step))


def test_sequences_and_the_prefix_cache_share_what_is_left(load):
    llm, notes = load(64 * MIB)
    whole = kept(llm, llm.ctx_size)
    assert llm.loaded.disk is None
    assert not any("The context is" in note for note in notes)
    cache = llm.engine.prefixes.tree.budget
    assert cache == (64 * MIB - whole) // room.CACHE_SHARE
    assert llm.engine.budget.nbytes == 64 * MIB - cache
    assert llm.stats()["total"]["steps"] == 0


def test_a_context_that_nobody_asked_for_is_as_long_as_has_room(load):
    longest = load(64 * MIB)[0].ctx_size
    llm, notes = load(kept(load(64 * MIB)[0], longest // 2) + 64)
    assert llm.ctx_size == llm.loaded.ctx_size < longest
    assert kept(llm, llm.ctx_size) <= llm.engine.budget.nbytes
    assert any(f"The context is {llm.ctx_size} tokens of {longest}" in note for note in notes)


def test_one_that_was_asked_for_has_room_or_is_refused_with_what_has(load):
    whole = kept(load(64 * MIB)[0], 64)
    assert load(whole, ctx_size=64, cache_ram=0)[0].ctx_size == 64
    with pytest.raises(DaliError, match=r"keys and values of 64 tokens may take") as caught:
        load(whole - 1, ctx_size=64, cache_ram=0)
    assert "ctx_size to 6" in caught.value.fix  # 63, or fewer where states grow in steps


def test_next_to_nothing_beside_experts_is_refused(load):
    with pytest.raises(DaliError, match=r"with the shortest context; ram allows") as caught:
        load(1)
    assert "Give ram" in caught.value.fix
